"""Tidying: drops the shards that stand-ins and former layouts left in the wrong place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from storage.batching import batched
from storage.fleet.placement import partition_of, start_of
from storage.keys import (
    ID_BYTES,
    SHARD_KEY_BYTES,
    Kind,
    ShardKey,
    kind_of,
    packed_keys,
    slot_of,
    stripe_of,
)
from storage.maintenance.readback import ReadBack
from taskworker.pool.background.driver import Signals
from taskworker.transport.port import WorkerVolume
from taskworker.transport.worker_fleet import WorkerFleet

_BATCH = 2048


class Tidier:
    """Drops misplaced copies, after fetching the proper ones and finding them equal.

    Args:
        fleet: the workers.
        readback: fetches and compares copies.
        signals: tell whether the work is to end.
        rest: gives way to users, after this many seconds of work.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        fleet: WorkerFleet,
        readback: ReadBack,
        signals: Signals,
        rest: Callable[[float], None],
        clock_s: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._readback = readback
        self._signals = signals
        self._rest = rest
        self._clock_s = clock_s

    def tidy(self) -> None:
        """Drop the misplaced copies on all trusted workers.

        Raises:
            CallAbandoned: the work is to end.
        """
        for slot, volume in self._fleet.online():
            if not self._fleet.trusts(slot):
                continue  # nothing is concluded from what it holds
            with self._fleet.guard(slot, volume):
                places = _Places(self._fleet, slot)
                for batch in batched(volume.keys(), _BATCH):
                    self._signals.check_open()
                    self._drop_misplaced(slot, volume, places.misplaced(batch))

    def _drop_misplaced(self, former: int, volume: WorkerVolume, by_holder: Mapping[int, list[ShardKey]]) -> None:
        """Remove shards that are also on the store where they belong, after fetching and comparing both copies."""
        for proper, misplaced in by_holder.items():
            began_s = self._clock_s()
            volume.remove(self._readback.alike(misplaced, former, proper))
            self._rest(self._clock_s() - began_s)


_Place = tuple[int, ...]
"""The parts of a shard key that determine where it belongs: the partition (first bytes of an id), and the end."""
_OF_PARTITION = bytes(start_of(partition_of(bytes((0, second))))[1] for second in range(256))


class _Places:
    """Which of a store's shards belong on another store.

    Answers are remembered by partition and slot, since there are millions of shards.
    """

    def __init__(self, fleet: WorkerFleet, slot: int) -> None:
        self._fleet = fleet
        self._slot = slot
        self._epoch: tuple[int, ...] = ()
        self._proper: dict[_Place, int] = {}

    def misplaced(self, keys: Sequence[ShardKey]) -> dict[int, list[ShardKey]]:
        """The shards that neither belong here nor are put here now, by the store where they belong."""
        epoch = self._fleet.epoch()
        if self._epoch != epoch:
            self._epoch, self._proper = epoch, {}
        places = _places_of(keys)
        different = set(places)
        unknown = different - self._proper.keys()
        if unknown:
            example = dict(zip(places, keys, strict=True))
            self._proper.update((place, self._holder(example[place])) for place in unknown)
        found: dict[int, list[ShardKey]] = {}
        stray = {place: holder for place in different if (holder := self._proper[place]) != self._slot}
        if stray:
            for place, key in zip(places, keys, strict=True):
                if place in stray:
                    found.setdefault(stray[place], []).append(key)
        return found

    def _holder(self, key: ShardKey) -> int:
        """The store that should have a shard; this one, if the shard is put here now."""
        if kind_of(key) == Kind.MARK:
            return self._slot  # each store has its own
        stripe, index = stripe_of(key), slot_of(key)
        return self._slot if self._fleet.targets(stripe)[index] == self._slot else self._fleet.holders(stripe)[index]


def _places_of(keys: Sequence[ShardKey]) -> list[_Place]:
    packed = packed_keys(keys)
    first, second, *ends = (packed[at::SHARD_KEY_BYTES] for at in (0, 1, *range(ID_BYTES, SHARD_KEY_BYTES)))
    return list(zip(first, second.translate(_OF_PARTITION), *ends, strict=True))

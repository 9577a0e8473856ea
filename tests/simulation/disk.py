"""A worker's volume in memory: a shard store whose disk may lose data, rot, lie and be full."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from blake3 import blake3

from storage.batching import batched
from storage.errors import StorageError, StoreFull
from storage.formats.sequences import bears_sequence, is_own, sequence_in
from storage.keys import ID_BYTES, Kind, ShardKey
from storage.shards import CorruptShard, Location, Shard, VolumeUsage
from storage.shards.port import Verdict

_RECORDS_TOGETHER = 50


class Health(Enum):
    """The true state of a stored shard."""

    GOOD = "good"
    ROTTEN = "rotten"  # its digest does not match
    LIE = "lie"  # its bytes are wrong, but match its digest


@dataclass(slots=True)
class Record:
    """A shard on the disk."""

    shard: Shard
    place: int
    health: Health = Health.GOOD

    @property
    def location(self) -> Location:
        """The location that the port reports."""
        return Location(0, self.place, len(self.shard.payload), self.shard.object_length)


class MemoryVolume:
    """See :class:`storage.shards.ShardStore`.

    Args:
        volume_id: id of the volume.
        wounds: keys of shards of which faults destroyed a durable copy that has not been made again; shared by all
            volumes of a simulation.
        on_removed: called for each good shard that is removed.

    Attributes:
        durable: keys of the shards that would be here, with the right bytes, after a power failure.
        made_up: (key, digest) of payloads that a liar returned without having them.
    """

    def __init__(
        self,
        volume_id: str,
        wounds: set[ShardKey],
        on_removed: Callable[[MemoryVolume, ShardKey], None] = lambda volume, key: None,
    ) -> None:
        self.volume_id = volume_id
        self.full = False
        self.records_by_key: dict[ShardKey, Record] = {}
        self.durable: set[ShardKey] = set()
        self.made_up: set[tuple[ShardKey, bytes]] = set()
        self._unsynced: dict[ShardKey, Record | None] = {}  # records that a power failure may bring back
        self._wounds = wounds
        self._on_removed = on_removed
        self._places = 0
        self._sorted: list[ShardKey] | None = None

    # -- the port --------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        for shard in shards:
            if self.full and not urgent:
                raise StoreFull(f"volume {self.volume_id} is full")
            self._places += 1
            self._set(shard.key, Record(shard._replace(payload=bytes(shard.payload)), self._places))

    def _set(self, key: ShardKey, record: Record | None) -> None:
        before = self.records_by_key.get(key)
        self._unsynced.setdefault(key, before)
        if before is not None and before.health is not Health.GOOD:
            self._wounds.add(key)  # the record of the damage is replaced now
        if record is None:
            self.records_by_key.pop(key, None)
        else:
            self.records_by_key[key] = record
        self._sorted = None
        self._judge(key)

    def sync(self) -> None:
        if not self._unsynced:
            return
        changed, self._unsynced = self._unsynced, {}
        for key in changed:
            self._judge(key)
        self._wounds.difference_update(self.durable.intersection(changed))

    def locate(self, key: ShardKey) -> Location | None:
        record = self.records_by_key.get(key)
        return None if record is None else record.location

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        return [self.locate(key) for key in keys]

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        return [at for at, key in enumerate(keys) if key not in self.records_by_key]

    def fetch(self, key: ShardKey, length: int) -> memoryview | None:
        record = self.records_by_key.get(key)
        if record is None or len(record.shard.payload) != length:
            return None
        return memoryview(record.shard.payload)

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> list[memoryview | None]:
        return [self.fetch(key, length) for key, length in wanted]

    def begin_fetch(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Sequence[bool] | StorageError], None],
    ) -> Callable[[], None]:
        payloads = self.fetch_all(wanted)
        for payload, place in zip(payloads, into, strict=True):
            if payload is not None:
                place[:] = payload
        done([payload is not None for payload in payloads])
        return lambda: None

    def read(self, key: ShardKey) -> Shard | None:
        record = self.records_by_key.get(key)
        if record is not None and record.health is Health.ROTTEN:
            raise CorruptShard(f"shard {key.hex()} is rotten")
        return None if record is None else record.shard

    def remove(self, keys: Iterable[ShardKey]) -> int:
        there = [key for key in keys if key in self.records_by_key]
        for key in there:
            if self.is_good(key):
                self._on_removed(self, key)
            self._set(key, None)
        return len(there)

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        return self.locate(key) == location and bool(self.remove([key]))

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        if self._sorted is None:
            self._sorted = sorted(self.records_by_key)
        first = bisect_left(self._sorted, start)
        last = len(self._sorted) if stop is None else bisect_left(self._sorted, stop)
        return iter(self._sorted[first:last])

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        for batch in batched(sorted(self.records_by_key.items()), _RECORDS_TOGETHER):
            yield [
                record.shard for key, record in batch if key[ID_BYTES] in kinds and record.health is not Health.ROTTEN
            ]

    def newest(self) -> Shard | None:
        readable = (record.shard for record in self.records_by_key.values() if record.health is not Health.ROTTEN)
        shards = [shard for shard in readable if bears_sequence(shard.key)]
        shards.sort(key=lambda shard: sequence_in(shard.key, shard.payload), reverse=True)
        return next((shard for shard in shards if is_own(shard.key, shard.payload)), None)

    def verify(self, progress: Callable[[int], None]) -> MemoryVerification:
        progress(len(self.records_by_key))
        return MemoryVerification(self)

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        return [self._check_one(key) for key in keys]

    def _check_one(self, key: ShardKey) -> Verdict:
        record = self.records_by_key.get(key)
        if record is None:
            return Verdict.MISSING
        return Verdict.ROTTEN if record.health is Health.ROTTEN and self.remove([key]) else Verdict.GOOD

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        return 0, 0

    def usage(self) -> VolumeUsage:
        return VolumeUsage(1, 0, 0, 1 << 30, len(self.records_by_key))

    # -- the truth -------------------------------------------------------------------------------

    def is_good(self, key: ShardKey) -> bool:
        """Whether the shard is here, with the right bytes."""
        record = self.records_by_key.get(key)
        return record is not None and record.health is Health.GOOD

    def is_durable(self, key: ShardKey) -> bool:
        """Whether the shard would be here, with the right bytes, after a power failure."""
        return key in self.durable

    def wrong(self) -> list[ShardKey]:
        """Return the keys of shards that are here with wrong bytes."""
        return [key for key, record in self.records_by_key.items() if record.health is not Health.GOOD]

    def _judge(self, key: ShardKey) -> None:
        """Update whether a changed shard is durable."""
        record = self._unsynced[key] if key in self._unsynced else self.records_by_key.get(key)
        if record is not None and record.health is Health.GOOD and self.is_good(key):
            self.durable.add(key)
        else:
            self.durable.discard(key)

    # -- faults ----------------------------------------------------------------------------------

    def lose_power(self, rng: Random) -> None:
        """Undo a random part of all changes that were not synced."""
        for key, before in self._unsynced.items():
            if rng.random() < 0.5:
                if before is None:
                    self.records_by_key.pop(key, None)
                else:
                    self.records_by_key[key] = before
        self._sorted = None
        self.sync()

    def rot(self, key: ShardKey, rng: Random) -> None:
        """Flip a bit of a payload."""
        record = self.records_by_key[key]
        record.shard = record.shard._replace(payload=_flipped(record.shard.payload, rng))
        record.health = Health.ROTTEN
        self._wounds.add(key)
        self._judge(key)

    def lie(self, key: ShardKey, rng: Random, other: Shard | None) -> None:
        """Replace a payload by wrong bytes, or by another shard's, with a digest that matches them."""
        record = self.records_by_key[key]
        if other is None or other.payload == record.shard.payload:
            payload = _flipped(record.shard.payload, rng)
            record.shard = Shard(key, record.shard.object_length, blake3(payload).digest(), payload)
        else:
            digest = blake3(other.payload).digest()  # if the other shard is rotten, its own digest does not match
            record.shard = other._replace(key=key, digest=digest)
        record.health = Health.LIE
        self._wounds.add(key)
        self._judge(key)

    def confess(self) -> None:
        """Turn lies into rot, which the digest reveals."""
        for record in self.records_by_key.values():
            if record.health is Health.LIE:
                record.health = Health.ROTTEN

    def copied(self) -> dict[ShardKey, Record]:
        """Return a copy of all records."""
        return {key: replace(record) for key, record in self.records_by_key.items()}

    def put_back(self, copy: dict[ShardKey, Record]) -> None:
        """Replace all records of a stopped machine by a copy."""
        good = {key for key, record in copy.items() if record.health is Health.GOOD}
        gone = {key for key in self.records_by_key if key not in copy and not self.is_good(key)}
        self._wounds.update(gone, self.durable - good)
        self.records_by_key, self.durable, self._unsynced, self._sorted = copy, good, {}, None

    def wounded(self) -> None:
        """Note that everything here is lost."""
        self._wounds.update(self.records_by_key)


class MemoryVerification:
    """See :class:`storage.shards.port.Verification`."""

    def __init__(self, volume: MemoryVolume) -> None:
        self._volume = volume
        self._rotten = {
            key: record.location
            for key, record in sorted(volume.records_by_key.items())
            if record.health is Health.ROTTEN
        }

    def judge(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        return [self._judge(key) for key in keys]

    def _judge(self, key: ShardKey) -> Verdict:
        location = self._rotten.get(key)
        if location is not None and self._volume.discard(key, location):
            return Verdict.ROTTEN
        return Verdict.MISSING if self._volume.locate(key) is None else Verdict.GOOD

    def quarantine_rest(self) -> Iterator[ShardKey]:
        return iter([key for key, location in self._rotten.items() if self._volume.discard(key, location)])


def _flipped(payload: object, rng: Random) -> bytes:
    changed = bytearray(payload)  # type: ignore[call-overload]
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)

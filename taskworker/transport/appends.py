"""Appends to workers' volumes: what one cannot take goes to another, and all of it is made durable."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from storage.errors import InsufficientWorkers, StorageError, StoreFull
from storage.keys import Kind, ShardKey, StripeKey, kind_of, slot_of, stripe_of
from storage.shards import Shard, ShardStore, VolumeFailed, VolumeUnavailable
from taskworker.transport.port import Ticket, WorkerVolume


class Workers(Protocol):
    """What appends need of a fleet.

    Attributes:
        witnesses: by slot, where they are kept: the latest version that was made durable there.
    """

    witnesses: dict[int, ShardKey]

    def __len__(self) -> int:
        """How many workers there are, online or not."""

    def online(self) -> list[tuple[int, WorkerVolume]]:
        """The usable volumes with their slots."""

    def volume(self, slot: int) -> WorkerVolume | None:
        """The volume in a slot, None while it is offline."""

    def holders(self, stripe: StripeKey) -> tuple[int, ...]:
        """The slot that each shard of a stripe belongs to."""

    def targets(self, stripe: StripeKey) -> tuple[int, ...]:
        """The slot that each shard of a stripe is put on now."""

    def takes_new(self, slot: int) -> bool:
        """Whether a worker is neither full, slow nor distrusted, so that it is given what is new."""

    def full(self) -> frozenset[int]:
        """Workers that have no space for more."""

    def why_no_space(self) -> StorageError:
        """The error of a write that too few workers can take."""

    def set_offline(self, slot: int, reason: str, failed: ShardStore | None = None) -> None:
        """Stop using a volume that failed."""

    def note_write_refused(self, slot: int, error: StorageError) -> None:
        """A worker cannot write what it was given."""

    def note_refusal(self) -> None:
        """A worker refused appends that may be another push's: whoever began before now looks what is missing."""

    def note_undurable(self, slot: int) -> None:
        """A full worker cannot make durable what it took before."""

    def note_durable(self, slot: int) -> None:
        """A worker has made durable all that it was given."""

    def note_taken(self, took_s: dict[int, float]) -> None:
        """How long each worker took to make what it was given durable."""


class _Started(NamedTuple):
    """A sync under way."""

    slot: int
    volume: WorkerVolume
    ticket: Ticket


class Appends:
    """Sends shards to workers. Thread-safe: it takes no lock, and calls none of ``workers`` with one held.

    Args:
        workers: told of everything that goes wrong, so that targets lead elsewhere then.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._unsynced: set[int] = set()  # were given something since they were synced last

    def append(self, batches: dict[int, list[Shard]], *, urgent: bool = False) -> Collection[int]:
        """See :meth:`Fleet.append`. What a worker cannot take any more goes to those that stand in for it."""
        while batches:
            left: list[Shard] = []
            for slot, shards in batches.items():
                volume = self._workers.volume(slot)
                if volume is not None:
                    try:
                        self._unsynced.add(slot)
                        volume.append(shards, urgent=urgent)
                        continue
                    except VolumeFailed as error:
                        self._workers.set_offline(slot, str(error), volume)
                    except (StoreFull, VolumeUnavailable) as error:
                        self._workers.note_write_refused(slot, error)
                left += shards
            batches = self._again(left)
        return ()

    def append_and_sync(self, batches: dict[int, list[Shard]]) -> None:
        """See :meth:`Fleet.append_and_sync`. Each worker gets all of it in one message."""
        others = True
        again: set[int] = set()  # refused some of it, and are to make durable what they took before
        while batches or others or again:
            tickets: list[_Started] = []
            online = dict(self._workers.online())
            left = [shard for slot, shards in batches.items() if slot not in online for shard in shards]
            for slot, volume in online.items():
                if slot in batches or slot in again or (others and self._is_synced_with_all(slot)):
                    self._start(slot, volume, batches.get(slot, []), tickets, left)
            refusals = again
            again = set()
            for slot, error in self._await(tickets):
                if error is None:
                    self._workers.note_durable(slot)
                    self._note_witness(slot, batches.get(slot, ()))
                else:
                    left += batches.get(slot, [])
                if isinstance(error, (StoreFull, VolumeUnavailable)):
                    if slot in refusals:
                        # It is not asked again before it is tried as one that has space.
                        self._unsynced.discard(slot)
                        self._workers.note_undurable(slot)
                    else:
                        again.add(slot)
            batches, others = self._again(left), False

    def _is_synced_with_all(self, slot: int) -> bool:
        """Whether a worker is asked to make durable what it has whenever all are."""
        return slot in self._unsynced or self._workers.takes_new(slot)

    def _note_witness(self, slot: int, shards: Sequence[Shard]) -> None:
        """A version that was made durable on a store: if it comes back without, it is an older copy."""
        if shards and kind_of(shards[-1].key) == Kind.VERSION:  # commits put it last
            key = shards[-1].key
            if self._workers.holders(stripe_of(key))[slot_of(key)] == slot:  # stand-ins get rid of theirs
                self._workers.witnesses[slot] = key

    def _start(
        self, slot: int, volume: WorkerVolume, shards: list[Shard], tickets: list[_Started], left: list[Shard]
    ) -> None:
        self._unsynced.discard(slot)
        try:
            tickets.append(_Started(slot, volume, volume.start_sync(shards)))
        except VolumeFailed as error:
            self._workers.set_offline(slot, str(error), volume)
            left += shards
        except (StoreFull, VolumeUnavailable) as error:
            self._workers.note_write_refused(slot, error)
            left += shards

    def _await(self, tickets: list[_Started]) -> list[tuple[int, StorageError | None]]:
        """(slot, why it failed or refused) of every sync, all of which have ended."""
        outcomes: list[tuple[int, StorageError | None]] = []
        refused: StorageError | None = None
        for slot, volume, ticket in tickets:
            try:
                ticket.wait()
                outcomes.append((slot, None))
            except VolumeFailed as error:
                self._workers.set_offline(slot, str(error), volume)
                outcomes.append((slot, error))
            except (StoreFull, VolumeUnavailable) as error:
                # The appends refused may be another push's.
                self._unsynced.add(slot)
                self._workers.note_write_refused(slot, error)
                outcomes.append((slot, error))
            except StorageError as error:
                self._unsynced.add(slot)
                self._workers.note_refusal()
                refused = refused or error
        self._workers.note_taken({slot: ticket.took_s for slot, _, ticket in tickets})
        if refused is not None:
            raise refused
        return outcomes

    def _again(self, shards: list[Shard]) -> dict[int, list[Shard]]:
        """Shards that could not be delivered, by where to put them now."""
        batches: dict[int, list[Shard]] = {}
        for shard in shards:
            target = self._target_now(shard.key)
            if target in self._workers.full():
                raise self._workers.why_no_space()
            batches.setdefault(target, []).append(shard)
        return batches

    def _target_now(self, key: ShardKey) -> int:
        """Where to put a shard. A worker that goes away between two looks is another one's turn."""
        for _ in range(len(self._workers) + 1):
            target = self._workers.targets(stripe_of(key))[slot_of(key)]
            if self._workers.volume(target) is not None:
                return target
        raise InsufficientWorkers("no worker is left to take the data; start some and try again")

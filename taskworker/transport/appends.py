"""Appends to workers' volumes: shards that one cannot take go to another, and all are made durable."""

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
        witnesses: by slot, the key of the latest version that was made durable there.
    """

    witnesses: dict[int, ShardKey]

    def __len__(self) -> int:
        """The number of workers, online or not."""

    def online(self) -> list[tuple[int, WorkerVolume]]:
        """The usable volumes with their slots."""

    def volume(self, slot: int) -> WorkerVolume | None:
        """The volume in a slot; None while it is offline."""

    def holders(self, stripe: StripeKey) -> tuple[int, ...]:
        """The slot that each shard of a stripe belongs to."""

    def targets(self, stripe: StripeKey) -> tuple[int, ...]:
        """The slot that each shard of a stripe is written to now."""

    def takes_new(self, slot: int) -> bool:
        """Whether a worker is given new shards: it is neither full, slow nor distrusted."""

    def full(self) -> frozenset[int]:
        """Workers that cannot take more shards."""

    def why_no_space(self) -> StorageError:
        """The error for a write that too few workers can take."""

    def set_offline(self, slot: int, reason: str, failed: ShardStore | None = None) -> None:
        """Stop using a volume that failed."""

    def note_write_refused(self, slot: int, error: StorageError) -> None:
        """Note that a worker could not write what it was given."""

    def note_refusal(self) -> None:
        """Note that a worker refused appends, maybe of another push: every push under way checks what is missing."""

    def note_undurable(self, slot: int) -> None:
        """Note that a full worker could not make durable what it took before."""

    def note_durable(self, slot: int) -> None:
        """Note that a worker has made durable all that it was given."""

    def note_taken(self, took_s: dict[int, float]) -> None:
        """Note how long each worker took to make durable what it was given."""


class _Started(NamedTuple):
    """A running sync."""

    slot: int
    volume: WorkerVolume
    ticket: Ticket


class Appends:
    """Sends shards to workers. Thread-safe: it takes no lock, and holds none when it calls ``workers``.

    Args:
        workers: the fleet, which is notified of every failure, so that it changes the targets.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._unsynced: set[int] = set()  # slots that were given shards since their last sync

    def append(self, batches: dict[int, list[Shard]], *, urgent: bool = False) -> Collection[int]:
        """See :meth:`Fleet.append`. Shards that a worker cannot take go to its stand-ins."""
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
        """See :meth:`Fleet.append_and_sync`. Each worker gets its shards in one message if they fit."""
        others = True
        again: set[int] = set()  # refused shards now, but must sync what they took before
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
                        # It is synced again only once it is tried again as a worker with space.
                        self._unsynced.discard(slot)
                        self._workers.note_undurable(slot)
                    else:
                        again.add(slot)
            batches, others = self._again(left), False

    def _is_synced_with_all(self, slot: int) -> bool:
        """Whether this worker is included when all workers are synced."""
        return slot in self._unsynced or self._workers.takes_new(slot)

    def _note_witness(self, slot: int, shards: Sequence[Shard]) -> None:
        """Remember a version that was made durable on a store: without it, the store is an older copy."""
        if shards and kind_of(shards[-1].key) == Kind.VERSION:  # commits write it last
            key = shards[-1].key
            if self._workers.holders(stripe_of(key))[slot_of(key)] == slot:  # a stand-in drops its copy later
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
        """Wait for all syncs; return (slot, why it failed or refused) of each."""
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
                # The refused appends may be of another push.
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
        """The shards that could not be delivered, by the slot to write them to now."""
        batches: dict[int, list[Shard]] = {}
        for shard in shards:
            target = self._target_now(shard.key)
            if target in self._workers.full():
                raise self._workers.why_no_space()
            batches.setdefault(target, []).append(shard)
        return batches

    def _target_now(self, key: ShardKey) -> int:
        """The slot to write a shard to now. Looks again if a worker has gone away in between."""
        for _ in range(len(self._workers) + 1):
            target = self._workers.targets(stripe_of(key))[slot_of(key)]
            if self._workers.volume(target) is not None:
                return target
        raise InsufficientWorkers("no worker is left to take the data; start some and try again")

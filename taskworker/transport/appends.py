"""Appends to workers' volumes: shards that one cannot take go to another, and all are made durable.

A write does not wait for workers that are late (:mod:`taskworker.transport.lateness`): others take their shards, and
the write is acknowledged once those are durable. What a late worker then has as well is dropped by the next repair. A
worker is also late if it has no room for more, because it has not answered for as long; then it is not even sent them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median
from typing import NamedTuple, Protocol

from storage.errors import InsufficientWorkers, StorageError, StoreFull
from storage.keys import ID_BYTES, Kind, ShardKey, StripeKey, kind_of, slot_of, stripe_of
from storage.limits import KIB
from storage.shards import Shard, ShardStore, VolumeFailed, VolumeUnavailable
from taskworker.transport.lateness import Lateness
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

    def slow(self) -> frozenset[int]:
        """Workers that others stand in for, because they keep everybody waiting."""

    def await_targets(self) -> None:
        """Wait until a change that another thread has begun, such as that a worker went, also shows in the targets."""

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

    def note_taken(self, took_s: dict[int, float], late: Collection[int] = ()) -> None:
        """Note how long each worker took to make durable what it was given, and which are late."""

    def note_caught_up(self, slot: int) -> None:
        """Note that a worker has answered all writes that did not wait for it."""

    def can_spare(self, slots: Collection[int], profiles: Collection[tuple[int, int]]) -> bool:
        """Whether the other workers are enough to take all shards of stripes with these k and n."""


class _Started(NamedTuple):
    """A running sync."""

    slot: int
    volume: WorkerVolume
    ticket: Ticket


class _Offered(NamedTuple):
    """Shards that a worker has had no room for yet."""

    slot: int
    volume: WorkerVolume
    shards: Sequence[Shard]


_PROFILES_MAX = 64
_LOOK_S = 0.05
_BYTES_MIN = 64 * KIB  # less than this takes no longer for being more
_SHARES_MAX = 3.0  # as many workers' shares one may get at once


class Appends:
    """Sends shards to workers. Thread-safe: it holds no lock when it calls ``workers``.

    Args:
        workers: the fleet, which is notified of every failure, so that it changes the targets.
        clock_s: monotonic seconds.
    """

    def __init__(self, workers: Workers, clock_s: Callable[[], float]) -> None:
        self._workers = workers
        self._clock_s = clock_s
        # What large writes take says nothing about small ones, such as the last step of each large one.
        self._small, self._large = Lateness(), Lateness()
        self._late: list[_Started] = []  # syncs that nobody waited for; replaced as a whole, under the lock
        self._lock = threading.Lock()
        self._profiles: set[tuple[int, int]] = set()  # of all shards appended so far
        self._undurable: set[int] = set()  # slots that had no space to sync; not included when all are synced

    def append(self, batches: dict[int, list[Shard]], *, urgent: bool = False) -> Collection[int]:
        """See :meth:`Fleet.append`. Shards that a worker cannot take go to its stand-ins."""
        self._note_profiles(batches)
        while batches:
            batches = self._again(self._hand_over(batches, urgent=urgent))
        return ()

    def _hand_over(self, batches: dict[int, list[Shard]], *, urgent: bool) -> list[Shard]:
        """Give workers their shards; return those that they have not taken."""
        left: list[Shard] = []
        others: list[WorkerVolume] = []
        waiting: list[_Offered] = []
        for slot, shards in batches.items():
            volume = self._workers.volume(slot)
            if volume is None:
                left += shards
            elif rest := self._offer(_Offered(slot, volume, shards), 0.0, left, urgent=urgent):
                waiting.append(rest)
            else:
                others.append(volume)
        while waiting:
            if self._have_no_room(waiting, others):
                self._leave_out(waiting)
                return [*left, *(shard for one in waiting for shard in one.shards)]
            still: list[_Offered] = []
            for one in waiting:
                if rest := self._offer(one, _LOOK_S, left, urgent=urgent):
                    still.append(rest)
                else:
                    others.append(one.volume)
            waiting = still
        return left

    def _offer(self, offered: _Offered, within_s: float, left: list[Shard], *, urgent: bool) -> _Offered | None:
        """Give a worker shards, if it has room in time; return what it had none for, or None.

        Those that it cannot take for another reason are added to ``left``.
        """
        slot, volume, shards = offered
        try:
            rest = volume.offer(shards, within_s, urgent=urgent)
        except VolumeFailed as error:
            self._workers.set_offline(slot, str(error), volume)
        except (StoreFull, VolumeUnavailable) as error:
            self._workers.note_write_refused(slot, error)
        else:
            self._undurable.discard(slot)
            return _Offered(slot, volume, rest) if rest else None
        left += shards
        return None

    def _have_no_room(self, waiting: Sequence[_Offered], others: Sequence[WorkerVolume]) -> bool:
        """Whether these workers are late, as they have not answered for so long, and others can stand in for them.

        Over links that are slow as a whole, the others have not answered for as long.
        """
        limit_s = self._large.limit_s([volume.oldest_s for volume in others])
        return all(one.volume.oldest_s >= limit_s for one in waiting) and self._can_spare([one.slot for one in waiting])

    def _leave_out(self, crowded: Sequence[_Offered]) -> None:
        """Note that workers are late, until they have answered what they were sent before."""
        late: list[_Started] = []
        for slot, volume, _ in crowded:
            try:
                ticket = volume.start_sync()
            except VolumeFailed as error:
                self._workers.set_offline(slot, str(error), volume)
                continue
            ticket.leave()
            late.append(_Started(slot, volume, ticket))
        self._note_taken({}, late)

    def note_given(self, slot: int) -> None:
        """Note that a worker got shards in another way."""
        self._undurable.discard(slot)

    def append_and_sync(
        self, batches: dict[int, list[Shard]], *, everywhere: bool = False
    ) -> Mapping[int, Sequence[Shard]]:
        """See :meth:`Fleet.append_and_sync`. Each worker gets its shards in one message if they fit.

        Args:
            batches: the shards for each worker.
            everywhere: wait for late workers as well.
        """
        durable: dict[int, list[Shard]] = {}
        self._note_profiles(batches)
        others = True
        again: set[int] = set()  # refused shards now, but must sync what they took before
        while batches or others or again:
            tickets: list[_Started] = []
            online = dict(self._workers.online())
            left = [shard for slot, shards in batches.items() if slot not in online for shard in shards]
            for slot, volume in online.items():
                if slot in batches or slot in again or (others and self._is_synced_with_all(slot, volume)):
                    self._start(slot, volume, batches.get(slot, []), tickets, left)
            refusals = again
            again = set()
            late = [] if everywhere else self._who_is_late(tickets)
            for started in late:
                started.ticket.leave()
                left += batches.get(started.slot, [])
            for slot, error in self._await(tickets, late):
                if error is None:
                    self._undurable.discard(slot)
                    self._workers.note_durable(slot)
                    self._note_witness(slot, batches.get(slot, ()))
                    durable.setdefault(slot, []).extend(batches.get(slot, ()))
                else:
                    left += batches.get(slot, [])
                if isinstance(error, (StoreFull, VolumeUnavailable)):
                    if slot in refusals:
                        # It is synced again only once it is tried again as a worker with space.
                        self._undurable.add(slot)
                        self._workers.note_undurable(slot)
                    else:
                        again.add(slot)
            batches, others = self._again(left), False
        return durable

    def _note_profiles(self, batches: dict[int, list[Shard]]) -> None:
        suffixes = {shard.key[ID_BYTES:-1] for shards in batches.values() for shard in shards}
        known = {(suffix[1] + 1, suffix[2] + 1) for suffix in suffixes}
        if not known <= self._profiles:
            self._profiles = self._profiles | known

    def _is_synced_with_all(self, slot: int, volume: WorkerVolume) -> bool:
        """Whether this worker is included when all workers are synced: it has shards that may not be durable.

        A late one is not, while others stand in for it: no shard is counted on there. If that changes, so does the
        fleet's epoch, and every push checks what it has written.
        """
        if any(late.slot == slot for late in self._late) and self._can_spare([slot]) and slot in self._workers.slow():
            return False
        return volume.needs_sync and (slot not in self._undurable or self._workers.takes_new(slot))

    def _note_witness(self, slot: int, shards: Sequence[Shard]) -> None:
        """Remember a version that was made durable on a store: without it, the store is an older copy."""
        if shards and kind_of(shards[-1].key) == Kind.VERSION:  # commits write it last
            key = shards[-1].key
            if self._workers.holders(stripe_of(key))[slot_of(key)] == slot:  # a stand-in drops its copy later
                self._workers.witnesses[slot] = key

    def _start(
        self, slot: int, volume: WorkerVolume, shards: list[Shard], tickets: list[_Started], left: list[Shard]
    ) -> None:
        try:
            tickets.append(_Started(slot, volume, volume.start_sync(shards)))
        except VolumeFailed as error:
            self._workers.set_offline(slot, str(error), volume)
            left += shards
        except (StoreFull, VolumeUnavailable) as error:
            self._workers.note_write_refused(slot, error)
            left += shards

    def _who_is_late(self, tickets: list[_Started]) -> list[_Started]:
        """Wait until all syncs have ended, or only late ones are left, which others can stand in for; return those."""
        lateness = self._lateness(tickets)
        began_s = self._clock_s()
        until_s = began_s + lateness.usual_s()
        while True:
            waiting = [one for one in tickets if not one.ticket.ended_within(until_s - self._clock_s())]
            if not waiting:
                return []
            now_s = self._clock_s()
            ended = [one.ticket for one in tickets if one not in waiting]
            are_late = all(now_s - began_s >= limit_s for limit_s in self._limits_s(lateness, waiting, ended))
            if are_late and self._can_spare([one.slot for one in waiting]):
                return waiting
            until_s = now_s + _LOOK_S

    def _lateness(self, tickets: list[_Started]) -> Lateness:
        """What decides who is late with a write of this size."""
        usual_bytes = median(started.ticket.size for started in tickets) if tickets else 0
        return self._small if usual_bytes <= _BYTES_MIN else self._large

    def _limits_s(self, lateness: Lateness, waiting: list[_Started], ended: list[Ticket]) -> list[float]:
        """The seconds after which each worker is late. One that stands in for others has more to do than they had."""
        limit_s = lateness.limit_s([ticket.took_s for ticket in ended])
        compared = ended or [one.ticket for one in waiting]
        usual_bytes = max(_BYTES_MIN, median(ticket.size for ticket in compared))
        return [limit_s * min(_SHARES_MAX, max(1.0, one.ticket.size / usual_bytes)) for one in waiting]

    def _can_spare(self, slots: Collection[int]) -> bool:
        profiles = self._profiles
        return 0 < len(profiles) <= _PROFILES_MAX and self._workers.can_spare(slots, profiles)

    def _await(self, tickets: list[_Started], late: list[_Started]) -> list[tuple[int, StorageError | None]]:
        """Wait for all syncs but the late ones; return (slot, why it failed or refused) of each."""
        outcomes: list[tuple[int, StorageError | None]] = []
        refused: StorageError | None = None
        for started in tickets:
            if started in late:
                continue
            error = self._outcome(started)
            if error is None or isinstance(error, (VolumeFailed, StoreFull, VolumeUnavailable)):
                outcomes.append((started.slot, error))
            else:
                refused = refused or error
        took_s = {one.slot: one.ticket.took_s for one in tickets if one not in late}
        self._lateness(tickets).note(took_s.values())
        self._note_taken(took_s, late)
        self._settle_late({slot for slot, error in outcomes if error is None})
        if refused is not None:
            raise refused
        return outcomes

    def _outcome(self, started: _Started) -> StorageError | None:
        """Wait for a sync; return why it failed or refused."""
        slot, volume, ticket = started
        try:
            ticket.wait()
        except VolumeFailed as error:
            self._workers.set_offline(slot, str(error), volume)
            return error
        except (StoreFull, VolumeUnavailable) as error:
            # The refused appends may be of another push, which syncs this worker as well.
            self._undurable.discard(slot)
            self._workers.note_write_refused(slot, error)
            return error
        except StorageError as error:
            self._workers.note_refusal()
            return error
        return None

    def settle_late(self) -> None:
        """Act on the outcomes of syncs that nobody waited for and that have ended."""
        if self._late:
            self._settle_late(())

    def _note_taken(self, took_s: dict[int, float], late: list[_Started]) -> None:
        """Note what a write took, and remember its late syncs until they have ended.

        A worker that is late already is not late once more with writes that had begun before.
        """
        slow = self._workers.slow()
        with self._lock:
            known = {one.slot for one in self._late if one.slot in slow}
            self._late = self._late + late
        self._workers.note_taken(took_s, [one.slot for one in late if one.slot not in known])
        for slot in {one.slot for one in late} - {one.slot for one in self._late}:
            self._workers.note_caught_up(slot)  # it did just before it was noted as late

    def _settle_late(self, synced: Collection[int]) -> None:
        """Act on the outcomes of late syncs that have ended, each once.

        What these workers refused was maybe counted on by other pushes. Those that have synced since have answered.
        """
        ended = [one for one in self._late if one.slot in synced or one.ticket.ended_within(0)]
        if not ended:
            return
        with self._lock:
            answered = [one for one in self._late if one in ended]
            self._late = [one for one in self._late if one not in answered]
            behind = {one.slot for one in self._late}
        for one in answered:
            self._outcome(one)
        for slot in {one.slot for one in answered} - behind:
            self._workers.note_caught_up(slot)

    def _again(self, shards: list[Shard]) -> dict[int, list[Shard]]:
        """The shards that could not be delivered, by the slot to write them to now."""
        batches: dict[int, list[Shard]] = {}
        for shard in shards:
            batches.setdefault(self._target_now(shard.key), []).append(shard)
        return batches

    def _target_now(self, key: ShardKey) -> int:
        """The slot to write a shard to now. Looks again if a worker went away or became full in between.

        Raises:
            InsufficientWorkers, StoreFull: no worker takes it.
        """
        is_full = False
        for _ in range(len(self._workers) + 1):
            target = self._workers.targets(stripe_of(key))[slot_of(key)]
            is_full = target in self._workers.full()
            if not is_full and self._workers.volume(target) is not None:
                return target
            self._workers.await_targets()
        if is_full:
            raise self._workers.why_no_space()
        raise InsufficientWorkers("no worker is left to take the data; start some and try again")

"""Group commit: many versions made durable by one flush of the volumes and one catalog transaction.

A commit is planned on what the catalog has, written to the volumes, then entered by a transaction that first compares
the catalog with what the plan was made on. Nothing is written to disks or sent to workers while a transaction is open.

Order on disk: shards and version objects on all volumes, then the catalog. A version is visible
exactly when its catalog transaction has committed; a crash before leaves only unreachable shards.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from storage.catalog import Catalog, CatalogTransaction, Counters, FileEntry
from storage.errors import (
    ConflictError,
    FileNotFound,
    FormatError,
    InsufficientWorkers,
    InvalidArgument,
    StorageError,
    StoreFull,
    StoreUnavailable,
)
from storage.formats.authenticity import Authority
from storage.formats.manifest import object_id
from storage.formats.sequences import SEQUENCE_MAX
from storage.formats.versions import (
    FILE_ID_BYTES,
    NO_MAC,
    SIGNED_FORMAT,
    SignedRecord,
    StoredVersion,
    root_id,
    seal_signed,
    sign_tombstone,
)
from storage.keys import Kind, StripeKey
from storage.runtime import Runtime
from storage.shards import Shard
from storage.stripes.stripes import StripeStore, metadata_stripe
from storage.write.batch import Basis, BatchPlan, DeletePlan
from storage.write.lineage import Lineage
from storage.write.pending import EpochChanged, PendingVersion
from storage.write.pins import Pins
from storage.write.redundancy import ROUNDS_MAX, make_whole, restless

log = logging.getLogger(__name__)

_BATCH_MAX = 256
_PLANS_MAX = 16  # one process's commits and deletes wait for each other, so that one plan is nearly always enough
_TOO_FEW_STORES = (InsufficientWorkers, StoreFull)
_RESERVE = 60_000_000  # sequences, of a microsecond each
_ID_TIME_BYTES = 6
_ID_TIME_MAX = (1 << 8 * _ID_TIME_BYTES) - 1
_ID_RANDOM_BYTES = FILE_ID_BYTES - _ID_TIME_BYTES


class GroupCommit:
    """Commits pending versions in batches. The first thread to come leads; the rest wait.

    Args:
        catalog: where heads live.
        stripes: where objects go.
        pins: keeps a collect off version objects that it has not seen in the catalog.
        metadata_copies: copies kept of each version object.
        runtime: the clock, and the random part of file ids.
        lineage: refuses commits to a catalog that is older than its volumes.
        authority: signs versions and tombstones.
    """

    def __init__(
        self, catalog: Catalog, stripes: StripeStore, pins: Pins, metadata_copies: int, runtime: Runtime,
        lineage: Lineage, authority: Authority,
    ) -> None:  # fmt: skip
        self._catalog = catalog
        self._stripes = stripes
        self._pins = pins
        self._copies = metadata_copies
        self._runtime = runtime
        self._lineage = lineage
        self._authority = authority
        self._mutex = threading.Lock()
        self._ordering = threading.Lock()  # held from a plan until it is entered
        self._queue: list[PendingVersion] = []
        self._leader: PendingVersion | None = None
        self._written_tombstones: list[bytes] = []
        counters = catalog.counters()
        self._reserved = counters.reserved
        self._sequence = 0 if counters.closed else counters.reserved

    def commit_whole(self, made_whole: Callable[[], PendingVersion]) -> StoredVersion:
        """Make a version whole and commit it; once more if stores came or went between.

        Args:
            made_whole: has what the version counts on put where it belongs now, and describes the version.

        Raises:
            InsufficientWorkers: besides, stores come and go all the time.
        """
        for _ in range(ROUNDS_MAX):
            try:
                return self.commit(made_whole())
            except EpochChanged:
                continue
        raise restless()

    def commit(self, pending: PendingVersion) -> StoredVersion:
        """Make a version durable and visible.

        Returns:
            the new head; the present head, ``unchanged``, if its content is the same and there is no new note.

        Raises:
            ConflictError: the head is not ``base``.
            FileNotFound: there is no ``file_id``, or it is another user's.
            StoreFull, InsufficientWorkers: it could not be stored.
            EpochChanged: what it counts on is to be made whole for the stores that are there now.
        """
        with self._mutex:
            self._queue.append(pending)
            if self._leader is None:
                self._leader = pending
            lead = self._leader is pending
        if not lead:
            self._await_turn(pending)
            if pending.settled:
                return pending.result()
        self._lead(pending)
        return pending.result()

    def _await_turn(self, pending: PendingVersion) -> None:
        """Sleep until settled by another leader, or made the leader; an interrupted sleeper passes that on."""
        try:
            pending.wait()
        except BaseException:
            with self._mutex:
                if pending in self._queue:
                    self._queue.remove(pending)
                successor = self._succeed() if self._leader is pending else None
            if successor is not None:
                successor.wake()
            raise

    def _succeed(self) -> PendingVersion | None:
        """Make the first in the queue the leader; call with the mutex held, and wake it afterwards."""
        self._leader = self._queue[0] if self._queue else None
        return self._leader

    def _lead(self, leader: PendingVersion) -> None:
        with self._mutex:
            batch, self._queue = self._queue[:_BATCH_MAX], self._queue[_BATCH_MAX:]
        try:
            self._commit_batch(batch)
        except BaseException as error:
            outcome = error if isinstance(error, Exception) else StorageError("the commit was interrupted; try again")
            for pending in batch:
                if not pending.settled:
                    pending.settle(outcome)
            if not isinstance(error, Exception):
                raise
        finally:
            with self._mutex:
                successor = self._succeed()
            for pending in batch:
                if pending is not leader:
                    pending.wake()
            if successor is not None:
                successor.wake()

    def _commit_batch(self, batch: list[PendingVersion]) -> None:
        self._lineage.begin()
        pinned: list[StripeKey] = []
        try:
            with self._ordering:
                self._reserve()
                outcomes = self._commit_together(batch, pinned)
        finally:
            self._pins.unpin(pinned)
        for pending, outcome in zip(batch, outcomes, strict=True):
            pending.settle(outcome)

    def _commit_together(
        self, batch: list[PendingVersion], pinned: list[StripeKey]
    ) -> list[StoredVersion | BaseException]:
        try:
            return self._plan_and_enter(batch, pinned)
        except _TOO_FEW_STORES as error:
            if len(batch) == 1 or self._stripes.volumes.stand_ins:
                raise
            log.info("%d commits are tried again, as some of them may do without some stores: %s", len(batch), error)
        # Now it is known which refuse: what cannot do without them fails alone, before anything of it is written.
        return self._plan_and_enter(batch, pinned)

    def _plan_and_enter(
        self, batch: list[PendingVersion], pinned: list[StripeKey]
    ) -> list[StoredVersion | BaseException]:
        """Plan a batch, make it durable, then enter it; once more if the catalog has changed meanwhile."""
        for _ in range(_PLANS_MAX):
            plan = self._plan(batch, pinned)
            if plan.has_something:
                self._make_durable(batch, plan)
            entered = self._catalog.transact(partial(self._enter, plan))
            if entered is not None:
                self._reserved = entered.reserved
                return plan.outcomes
            log.info("%d commits are planned anew, as others came first", len(batch))
        raise _overtaken()

    def _enter(self, plan: BatchPlan, txn: CatalogTransaction) -> Counters | None:
        entered = plan.enter(txn, _RESERVE)
        if entered is not None:
            self._keep_incomplete(txn)
        return entered

    def _plan(self, batch: list[PendingVersion], pinned: list[StripeKey]) -> BatchPlan:
        """Decide what becomes of each version, and what is to be written for it."""
        plan = BatchPlan(batch, self._catalog.transact(lambda txn: Basis.read(txn, batch)))
        for at, pending in enumerate(batch):
            try:
                outcome: StoredVersion | BaseException = self._plan_one(plan, at, pending, pinned)
            except (ConflictError, FileNotFound, InvalidArgument, *_TOO_FEW_STORES, FormatError, EpochChanged) as error:
                outcome = error
            plan.outcomes.append(outcome)
        return plan

    def _make_durable(self, batch: list[PendingVersion], plan: BatchPlan) -> None:
        """Write what a plan needs to the volumes, and see that enough of them have it."""
        volumes = self._stripes.volumes
        since = volumes.epoch()
        volumes.append_and_sync(plan.shards)
        self._stripes.note_appended(plan.shards, since)
        self._make_whole(batch, plan)
        for pending, outcome in zip(batch, plan.outcomes, strict=True):
            if isinstance(outcome, StoredVersion):  # the others have failed already
                volumes.require_writable(pending.root.profile, pending.epoch)

    def _keep_incomplete(self, txn: CatalogTransaction) -> None:
        """Enter, with what is stored, which volumes lack some of it: a crash must not make them count as whole.

        They are looked at within the transaction: one that another thread has entered meanwhile must stay entered.
        """
        volumes = self._stripes.volumes
        if volumes.incomplete and not volumes.stand_ins:
            txn.keep_incomplete(volumes.incomplete)

    def _make_whole(self, batch: list[PendingVersion], plan: BatchPlan) -> None:
        """Where stores were lost since it was decided what goes where, see that all of it is well spread."""

        def written() -> Iterable[StripeKey]:
            stripes = dict.fromkeys(StripeKey(shard.key[:-1]) for shards in plan.shards.values() for shard in shards)
            for pending in batch:
                stripes.update(dict.fromkeys(pending.stripes))
            yield from stripes
            for pending in batch:  # those of large files are many, and stores seldom come and go during a flush
                if pending.written is not None:
                    yield from pending.written()

        present = self._stripes.volumes.epoch()
        since = next((pending.epoch for pending in batch if pending.epoch != present), present)
        make_whole(self._stripes, written, since)

    def _plan_one(self, plan: BatchPlan, at: int, pending: PendingVersion, pinned: list[StripeKey]) -> StoredVersion:
        """Check one pending version against the heads and plan it; raises before it changes anything."""
        volumes = self._stripes.volumes
        if pending.written is not None and volumes.stand_ins and pending.epoch != volumes.epoch():
            raise EpochChanged("stores came or went before the commit; push again")  # no others wait for it here
        file_id, entry = plan.file_of(at)
        identifier, root_raw = root_id(pending.root)
        if entry is not None and file_id is not None:
            head = plan.head_of(at, file_id, entry)
            # The same content with something new said of it is a version of its own.
            if head.record.root_id == identifier and pending.target.note in ("", head.record.note):
                plan.restore(pending)
                return replace(head, unchanged=True)
        else:
            file_id = self._new_file_id()
        # Asked again once all is flushed; here, one that lasted through failures fails alone.
        volumes.require_writable(pending.root.profile, pending.epoch)
        plan.sequence = self._next_sequence(plan.sequence, self._reserved - _BATCH_MAX)
        stored = self._seal(pending, file_id, entry, identifier, root_raw, plan)
        plan.add(pending, stored, entry)
        plan.add_shards(pending.shards)
        stripe = metadata_stripe(Kind.VERSION, stored.version_id, self._copies)
        self._pins.pin(stripe)
        pinned.append(stripe)
        plan.add_shards(self._stripes.by_volume(stripe, self._stripes.shards_of(stripe, stored.raw, len(stored.raw))))
        return stored

    def _seal(
        self,
        pending: PendingVersion,
        file_id: bytes,
        entry: FileEntry | None,
        identifier: bytes,
        root_raw: bytes,
        plan: BatchPlan,
    ) -> StoredVersion:
        record = SignedRecord(
            SIGNED_FORMAT,
            file_id,
            entry.head if entry is not None else None,
            identifier,
            pending.root.size,
            pending.target.user_id,
            pending.target.filename,
            pending.target.time_ms,
            plan.sequence,
            pending.target.sha256,
            pending.target.note,
            plan.committed,
            NO_MAC,
        )
        return seal_signed(record, pending.root, root_raw, self._authority)

    def delete(
        self,
        file_ids: Sequence[bytes],
        check: Callable[[bytes, FileEntry | None], FileEntry],
        name: Callable[[str], bytes],
    ) -> None:
        """End the chains of files, durably: all of them or none, by one transaction and one flush of the volumes.

        Args:
            file_ids: the files, each once.
            check: given an id and its entry, returns the entry if the caller may delete it, raises otherwise.
            name: makes the key of a filename.
        """
        self._lineage.begin()
        pinned: list[StripeKey] = []
        try:
            with self._ordering:
                tombstones = self._delete(file_ids, check, name, pinned)
            self._write_tombstones(tombstones)
        finally:
            self._pins.unpin(pinned)

    def _delete(
        self,
        file_ids: Sequence[bytes],
        check: Callable[[bytes, FileEntry | None], FileEntry],
        name: Callable[[str], bytes],
        pinned: list[StripeKey],
    ) -> list[tuple[bytes, bytes]]:
        with self._mutex:
            written, self._written_tombstones = self._written_tombstones, []

        def read(txn: CatalogTransaction) -> tuple[int, dict[bytes, FileEntry]]:
            return txn.counters().sequence, {file_id: check(file_id, txn.file(file_id)) for file_id in file_ids}

        def enter(plan: DeletePlan, txn: CatalogTransaction) -> bool:
            entered = plan.enter(txn, written)
            if entered:
                self._keep_incomplete(txn)
            return entered

        try:
            for _ in range(_PLANS_MAX):
                sequence, entries = self._catalog.transact(read)
                plan = DeletePlan(sequence, entries)
                for file_id, entry in entries.items():
                    plan.sequence = self._next_sequence(plan.sequence)
                    raw = sign_tombstone(file_id, plan.sequence, self._authority)
                    plan.add(file_id, name(entry.filename), raw)
                    stripe = self._tombstone_stripe(raw)
                    self._pins.pin(stripe)
                    pinned.append(stripe)
                if self._catalog.transact(partial(enter, plan)):
                    return plan.tombstones
            raise _overtaken()
        except BaseException:
            with self._mutex:
                self._written_tombstones += written
            raise

    def _tombstone_stripe(self, raw: bytes) -> StripeKey:
        return metadata_stripe(Kind.TOMBSTONE, object_id(raw), self._copies)

    def _reserve(self) -> None:
        """Note in the catalog how far sequences may go, before any of them goes to the volumes.

        A commit that a crash undid may have left its version on volumes that are away when the store is opened
        again. Should the clock have been set back meanwhile, only the catalog knows which sequences are used.
        Each commit reserves those of the next minute, so that this takes a transaction only after a pause.
        """
        at_least = max(self._sequence, self._clock_us()) + _BATCH_MAX
        if at_least <= self._reserved:
            return

        def work(txn: CatalogTransaction) -> int:
            counters = txn.counters()
            reserved = max(at_least, counters.sequence, counters.reserved) + _RESERVE
            txn.set_counters(msgspec.structs.replace(counters, reserved=reserved))
            return reserved

        self._reserved = self._catalog.transact(work)

    def _next_sequence(self, last: int, most: int = SEQUENCE_MAX) -> int:
        """The store's clock in microseconds, but ``most``, or the next number where the clock did not advance.

        Greater than any that a failed commit has put on the volumes. Call with the ordering lock held.
        """
        self._sequence = max(last + 1, self._sequence + 1, min(self._clock_us(), most))
        return self._sequence

    def _clock_us(self) -> int:
        return self._runtime.wall_ns() // 1000

    def _new_file_id(self) -> bytes:
        """48 bits of milliseconds, so that new files are neighbours in the catalog, and 80 random bits."""
        milliseconds = min(max(self._runtime.wall_ms(), 0), _ID_TIME_MAX)
        return milliseconds.to_bytes(_ID_TIME_BYTES, "big") + self._runtime.token_bytes(_ID_RANDOM_BYTES)

    @property
    def sequence(self) -> int:
        """The last one that was given to anything."""
        return self._sequence

    def catch_up(self, sequence: int) -> None:
        """Make later commits later than this one, which a crash kept out of the catalog but not off the volumes.

        Otherwise a rebuild would take that one for the newer, should the clock have been set back.
        """
        self._sequence = max(self._sequence, sequence)
        if self._catalog.counters().sequence >= sequence:
            return
        try:
            self._catalog.transact(lambda txn: _raise_sequence(txn, sequence))
        except StoreFull:
            log.warning("no space to note the latest sequence number; the next commit does")

    def write_pending_tombstones(self) -> None:
        """Bring to the volumes what tombstones a crash or a full disk kept from them. Call before any delete."""
        leftovers = [
            (file_id, raw)
            for file_id, raw in self._catalog.pending_tombstones()
            if not self._pins.pinned(self._tombstone_stripe(raw))  # or a delete is just about to write it
        ]
        if leftovers:
            self._write_tombstones(leftovers)

    def _write_tombstones(self, tombstones: list[tuple[bytes, bytes]]) -> None:
        """Put tombstones on the volumes, where a rebuild finds them.

        After the catalog, not before: a tombstone of a delete that never happened would have a later
        rebuild drop the file. One that cannot be written now is written by a repair, or when the store is
        opened again.
        """
        stripes = [self._tombstone_stripe(raw) for _, raw in tombstones]
        for stripe in stripes:
            self._pins.pin(stripe)
        try:
            batches: dict[int, list[Shard]] = {}
            for stripe, (_, raw), absent in zip(stripes, tombstones, self._stripes.absent(stripes), strict=True):
                shards = self._stripes.shards_of(stripe, raw, len(raw), slots=absent)
                for slot, batch in self._stripes.by_volume(stripe, shards).items():
                    batches.setdefault(slot, []).extend(batch)
            self._stripes.volumes.append(batches, urgent=True)
            self._stripes.volumes.sync()
        except (StoreFull, InsufficientWorkers) as error:
            log.warning("the tombstones of %d deleted files wait in the catalog: %s", len(tombstones), error)
        else:
            told = [
                file_id
                for (file_id, _), absent in zip(tombstones, self._stripes.absent(stripes), strict=True)
                if len(absent) < self._copies  # not every volume is offline
            ]
            with self._mutex:
                self._written_tombstones += told
        finally:
            self._pins.unpin(stripes)


def _overtaken() -> StoreUnavailable:
    return StoreUnavailable("the catalog was changed by others all the while; try again")


def _raise_sequence(txn: CatalogTransaction, sequence: int) -> None:
    counters = txn.counters()
    txn.set_counters(msgspec.structs.replace(counters, sequence=sequence, committed=counters.reached))

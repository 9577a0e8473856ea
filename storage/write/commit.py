"""Group commit: many versions made durable by one flush of the volumes and one catalog transaction.

A commit is planned on the catalog's state and written to the volumes. Then a transaction enters it if the state has not
changed. While a transaction is open, nothing is written to disks or sent to workers.

Order on disk: shards and version objects on all volumes, then the catalog. A version is visible exactly when its
catalog transaction has committed; a crash before that leaves only unreachable shards.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec

from storage.catalog import Catalog, CatalogTransaction, Counters, FileEntry, Usage
from storage.errors import (
    ConflictError,
    FileNotFound,
    FormatError,
    InsufficientWorkers,
    InvalidArgument,
    StoreFull,
    StoreUnavailable,
)
from storage.formats.authenticity import Authority
from storage.formats.manifest import object_id
from storage.formats.sequences import SEQUENCE_MAX
from storage.formats.version_records import (
    ATTRIBUTED_FORMAT,
    FILE_ID_BYTES,
    NO_MAC,
    SIGNED_FORMAT,
    AttributedRecord,
    Signed,
    SignedRecord,
    VersionRecord,
    attributes_of,
)
from storage.formats.versions import StoredVersion, root_id, seal_encrypted, seal_signed
from storage.keys import Kind, StripeKey
from storage.runtime import Runtime
from storage.shards import Shard
from storage.stripes.stripes import StripeStore, metadata_stripe
from storage.write.batch import Basis, BatchPlan
from storage.write.completing import Appended, make_batch_whole
from storage.write.deleting import Check, Deletion, FilesDeletion, Former, NameOf, VersionDeletion, VersionDeletions
from storage.write.lineage import Lineage
from storage.write.pending import EpochChanged, PendingVersion
from storage.write.pins import Pins
from storage.write.queue import BATCH_MAX, CommitQueue
from storage.write.quotas import Quotas, root_bytes
from storage.write.redundancy import ROUNDS_MAX, restless
from storage.write.target import PushTarget
from storage.write.user_keys import UserKeyStore

DeletionT = TypeVar("DeletionT", bound=Deletion)

log = logging.getLogger(__name__)

_PLANS_MAX = 16  # commits and deletes of one process wait for each other, so nearly always the first plan succeeds
_TOO_FEW_STORES = (InsufficientWorkers, StoreFull)
_RESERVE = 60_000_000  # sequence numbers, one for each microsecond
_ID_TIME_BYTES = 6
_ID_TIME_MAX = (1 << 8 * _ID_TIME_BYTES) - 1
_ID_RANDOM_BYTES = FILE_ID_BYTES - _ID_TIME_BYTES


class GroupCommit:
    """Commits pending versions in batches; see :class:`~storage.write.queue.CommitQueue`.

    Args:
        catalog: the store's catalog.
        stripes: the store's stripes.
        pins: protect version objects from a collect until they are in the catalog.
        metadata_copies: how many copies to store of each version object.
        runtime: clock, and random bytes for file ids.
        lineage: refuses commits if the catalog is older than its volumes.
        authority: signs versions and tombstones.
        keys: finds the keys of sealed versions, and gives them secrets.
        quotas: refuses versions that are too much for their owners.
    """

    def __init__(
        self, catalog: Catalog, stripes: StripeStore, pins: Pins, metadata_copies: int, runtime: Runtime,
        lineage: Lineage, authority: Authority, keys: UserKeyStore, quotas: Quotas,
    ) -> None:  # fmt: skip
        self._quotas = quotas
        self._catalog = catalog
        self._stripes = stripes
        self._pins = pins
        self._copies = metadata_copies
        self._runtime = runtime
        self._lineage = lineage
        self._authority = authority
        self._keys = keys
        self._ordering = threading.Lock()  # held from planning until the plan is entered
        self._queue = CommitQueue(lambda batch: self._commit_batch(batch), runtime.monotonic_s)
        self._mutex = threading.Lock()  # guards the list of tombstones
        self._written_tombstones: list[bytes] = []
        counters = catalog.counters()
        self._reserved = counters.reserved
        self._sequence = 0 if counters.closed else counters.reserved

    def commit_whole(self, made_whole: Callable[[], PendingVersion]) -> StoredVersion:
        """Make a version complete and commit it; repeat both if stores came or went in between.

        Args:
            made_whole: makes everything that the version needs complete and durable, and returns the version.

        Raises:
            InsufficientWorkers: stores kept coming and going; or see :meth:`commit`.
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
            The new head. If the content is the same as the head's and there are no new note or attributes, the head,
            marked ``unchanged``.

        Raises:
            ConflictError: the head is not ``base``.
            FileNotFound: there is no file ``file_id``, or it belongs to another user.
            StoreFull, InsufficientWorkers: the version could not be stored.
            EpochChanged: stores came or went, so that the version has to be made complete again first.
        """
        self.commit_all([pending])
        return pending.result()

    def commit_all(self, pending: Sequence[PendingVersion]) -> None:
        """Like :meth:`commit` for many versions, in order. They share flushes and transactions.

        The outcome of each is in its :meth:`PendingVersion.result`; this method raises no error of a commit.
        """
        self._queue.commit_all(pending)

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
            log.info("%d commits are tried again, as some may not need the stores that failed: %s", len(batch), error)
        # Now the refusing stores are known, and versions that need them fail in planning, before anything is written.
        return self._plan_and_enter(batch, pinned)

    def _plan_and_enter(
        self, batch: list[PendingVersion], pinned: list[StripeKey]
    ) -> list[StoredVersion | BaseException]:
        """Plan a batch, make it durable, and enter it; start again if the catalog has changed meanwhile."""
        for _ in range(_PLANS_MAX):
            plan = self._plan(batch, pinned)
            if plan.has_something:
                self._make_durable(batch, plan)
            entered = self._catalog.transact(partial(self._enter, plan))
            if entered is not None:
                self._reserved = entered.reserved
                plan.keep_small(self._stripes.pushed)
                for epoch in {pending.epoch for pending in batch}:
                    self._stripes.volumes.note_committed(epoch)
                return plan.outcomes
            log.info("%d commits are planned again, as the catalog has changed", len(batch))
        raise _overtaken()

    def _enter(self, plan: BatchPlan, txn: CatalogTransaction) -> Counters | None:
        entered = plan.enter(txn, _RESERVE)
        if entered is not None:
            self._keep_incomplete(txn)
        return entered

    def _plan(self, batch: list[PendingVersion], pinned: list[StripeKey]) -> BatchPlan:
        """Decide the outcome of each version, and what to write for it."""
        plan = BatchPlan(batch, self._catalog.transact(lambda txn: Basis.read(txn, batch)), self._keys)
        for at, pending in enumerate(batch):
            try:
                outcome: StoredVersion | BaseException = self._plan_one(plan, at, pending, pinned)
            except (ConflictError, FileNotFound, InvalidArgument, *_TOO_FEW_STORES, FormatError, EpochChanged) as error:
                outcome = error
            plan.outcomes.append(outcome)
        return plan

    def _make_durable(self, batch: list[PendingVersion], plan: BatchPlan) -> None:
        """Write a plan's shards to the volumes, and check that enough volumes have them."""
        volumes = self._stripes.volumes
        since = volumes.epoch()
        durable = volumes.append_and_sync(plan.shards)
        self._stripes.note_appended(plan.shards, since)
        self._make_whole(batch, plan, durable, since)
        pairs = zip(batch, plan.outcomes, strict=True)
        planned = [pending for pending, outcome in pairs if isinstance(outcome, StoredVersion)]  # others have failed
        for profile, epoch in {(pending.target.profile, pending.epoch) for pending in planned}:
            volumes.require_writable(profile, epoch)

    def _keep_incomplete(self, txn: CatalogTransaction) -> None:
        """Enter in the same transaction which volumes are incomplete, so that they do not count as whole after a crash.

        The set is read within the transaction, so that a volume which another thread has just entered stays in it.
        """
        volumes = self._stripes.volumes
        if volumes.incomplete and not volumes.stand_ins:
            txn.keep_incomplete(volumes.incomplete)

    def _make_whole(
        self,
        batch: list[PendingVersion],
        plan: BatchPlan,
        durable: Mapping[int, Sequence[Shard]],
        began: tuple[int, ...],
    ) -> None:
        """If stores were lost since the shards were assigned, make all stripes of the batch complete again."""
        wanted = [
            pending
            for pending, outcome in zip(batch, plan.outcomes, strict=True)
            if isinstance(outcome, StoredVersion) and outcome.root.profile == pending.root.profile
        ]  # nothing of the others was written
        make_batch_whole(self._stripes, wanted, Appended(plan.shards, durable, began))

    def _plan_one(self, plan: BatchPlan, at: int, pending: PendingVersion, pinned: list[StripeKey]) -> StoredVersion:
        """Check one pending version against the heads, and plan it. If it raises, the plan is unchanged."""
        volumes = self._stripes.volumes
        if pending.written is not None and volumes.stand_ins and not volumes.keeps(pending.epoch):
            raise EpochChanged("stores came or went before the commit; push again")  # does not delay the others
        file_id, entry = plan.file_of(at)
        if pending.target.condition is not None:
            pending.target.condition.require(pending.target.filename, entry)
        identifier, root_raw = root_id(pending.root)
        if entry is not None and file_id is not None:
            head = plan.head_of(at, file_id, entry)
            # The same content with a new note, or with other attributes, is a new version.
            if _says_the_same(pending.target, head.record):
                if head.record.root_id == identifier:
                    plan.restore(pending)
                    return replace(head, unchanged=True)
                if not pending.target.is_chosen and pending.target.copies.are_alike(head.root, pending.root):
                    plan.leave_out(pending)
                    return replace(head, unchanged=True)
        else:
            file_id = self._new_file_id()
        # Checked again after the flush; if it fails here, only this version fails.
        volumes.require_writable(pending.target.profile, pending.epoch)
        plan.sequence = self._next_sequence(plan.sequence, self._reserved - BATCH_MAX)
        stored = self._seal(pending, file_id, entry, identifier, root_raw, plan)
        taken = len(stored.raw) * self._copies + (root_bytes(pending.root) if pending.taken is None else pending.taken)
        self._quotas.check(pending.target, plan.usage(pending), Usage(int(entry is None), taken))
        plan.add(pending, stored, entry, taken)
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
        attributes = pending.target.attributes
        fields = (
            ATTRIBUTED_FORMAT if attributes else SIGNED_FORMAT,
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
        )
        record: Signed
        if attributes:
            record = AttributedRecord(*fields, attributes, plan.committed, NO_MAC)
        else:
            record = SignedRecord(*fields, plan.committed, NO_MAC)
        if pending.target.key is None:
            return seal_signed(record, pending.root, root_raw, self._authority)
        secret, token_bytes = self._keys.new_secret(), self._runtime.token_bytes
        return seal_encrypted(record, pending.root, root_raw, self._authority, pending.target.key, secret, token_bytes)

    def delete(self, file_ids: Sequence[bytes], check: Check, name: NameOf) -> None:
        """Delete files durably: all of them or none, with one transaction and one flush of the volumes.

        Args:
            file_ids: ids of the files, each once.
            check: see :data:`~storage.write.deleting.Check`.
            name: see :data:`~storage.write.deleting.NameOf`.
        """

        def read(txn: CatalogTransaction) -> tuple[int, dict[bytes, FileEntry]]:
            return txn.counters().sequence, {file_id: check(file_id, txn.file(file_id)) for file_id in file_ids}

        self._bury(
            lambda: FilesDeletion.planned(self._catalog.transact(read), name, self._next_sequence, self._authority)
        )

    def delete_version(self, file_id: bytes, version_id: bytes, check: Check, name: NameOf) -> StoredVersion | None:
        """Delete one version of a file durably. If it is the head, the version before it is the next one.

        Returns:
            The head of the file now; None if there was no other version, so that the file is gone.

        Raises:
            VersionNotFound: the file has no such version.
            FormatError: the record of this version, or of one beside it, cannot be read.
        """
        plans = VersionDeletions(self._catalog, self._keys, self._authority)
        done = self._bury(lambda: plans.plan(file_id, version_id, check, name, self._next_sequence))
        return done.head if isinstance(done, VersionDeletion) else None

    def delete_former(self, wanted: Sequence[Former]) -> int:
        """Delete former versions durably, as far as their files have the same heads still; return how many."""
        plans = VersionDeletions(self._catalog, self._keys, self._authority)
        return len(self._bury(lambda: plans.plan_former(wanted, self._next_sequence)).tombstones)

    def _bury(self, plan_of: Callable[[], DeletionT]) -> DeletionT:
        """Plan a deletion and enter it; then write its tombstones."""
        pinned: list[StripeKey] = []
        with self._catalog.freeing():
            self._lineage.begin()
            try:
                with self._ordering:
                    plan = self._entered(plan_of, pinned)
                plan.settle(self._quotas)
                self._write_tombstones(plan.tombstones)
                return plan
            finally:
                self._pins.unpin(pinned)

    def _entered(self, plan_of: Callable[[], DeletionT], pinned: list[StripeKey]) -> DeletionT:
        with self._mutex:
            written, self._written_tombstones = self._written_tombstones, []

        def enter(plan: DeletionT, txn: CatalogTransaction) -> bool:
            entered = plan.enter(txn, written)
            if entered:
                self._keep_incomplete(txn)
            return entered

        try:
            for _ in range(_PLANS_MAX):
                plan = plan_of()
                for _, raw in plan.tombstones:
                    stripe = self._tombstone_stripe(raw)
                    self._pins.pin(stripe)
                    pinned.append(stripe)
                if self._catalog.transact(partial(enter, plan)):
                    return plan
            raise _overtaken()
        except BaseException:
            with self._mutex:
                self._written_tombstones += written
            raise

    def _tombstone_stripe(self, raw: bytes) -> StripeKey:
        return metadata_stripe(Kind.TOMBSTONE, object_id(raw), self._copies)

    def _reserve(self) -> None:
        """Reserve sequence numbers in the catalog, before any of them is written to the volumes.

        A crash during a commit may leave its version on volumes that are away when the store is opened again. If the
        clock was set back meanwhile, only the catalog knows which numbers were used. Each commit reserves those of the
        next minute, so that a transaction is only needed here after a pause.
        """
        at_least = max(self._sequence, self._clock_us()) + BATCH_MAX
        if at_least <= self._reserved:
            return

        def work(txn: CatalogTransaction) -> int:
            counters = txn.counters()
            reserved = max(at_least, counters.sequence, counters.reserved) + _RESERVE
            txn.set_counters(msgspec.structs.replace(counters, reserved=reserved))
            return reserved

        self._reserved = self._catalog.transact(work)

    def _next_sequence(self, last: int, most: int = SEQUENCE_MAX) -> int:
        """Return the next sequence number: the clock in microseconds, at most ``most``, and always more than the last.

        It is greater than all numbers that failed commits have written to the volumes. The caller holds the ordering
        lock.
        """
        self._sequence = max(last + 1, self._sequence + 1, min(self._clock_us(), most))
        return self._sequence

    def _clock_us(self) -> int:
        return self._runtime.wall_ns() // 1000

    def _new_file_id(self) -> bytes:
        """Make an id of 48 bits of milliseconds, so that new files are catalog neighbours, and 80 random bits."""
        milliseconds = min(max(self._runtime.wall_ms(), 0), _ID_TIME_MAX)
        return milliseconds.to_bytes(_ID_TIME_BYTES, "big") + self._runtime.token_bytes(_ID_RANDOM_BYTES)

    def paused(self) -> AbstractContextManager[object]:
        """Keep commits and deletes from being planned; those that were planned before have ended."""
        return self._ordering

    @property
    def sequence(self) -> int:
        """The sequence number that was given last."""
        return self._sequence

    def catch_up(self, sequence: int) -> None:
        """Give later commits higher numbers than this one, which a crash left on the volumes but not in the catalog.

        Otherwise, if the clock was set back, a rebuild would consider that one newer.
        """
        self._sequence = max(self._sequence, sequence)
        if self._catalog.counters().sequence >= sequence:
            return
        try:
            self._catalog.transact(lambda txn: _raise_sequence(txn, sequence))
        except StoreFull:
            log.warning("no space to note the latest sequence number; the next commit does")

    def write_pending_tombstones(self) -> None:
        """Write tombstones that a crash or a full disk kept from the volumes. Call before any delete."""
        leftovers = [
            (key, raw)
            for key, raw in self._catalog.pending_tombstones()
            if not self._pins.pinned(self._tombstone_stripe(raw))  # else a delete is writing it
        ]
        if leftovers:
            self._write_tombstones(leftovers)

    def _write_tombstones(self, tombstones: Sequence[tuple[bytes, bytes]]) -> None:
        """Write tombstones to the volumes, where a rebuild finds them.

        They are written after the catalog's commit: a tombstone of a delete that never happened would make a later
        rebuild drop the file. One that cannot be written now is written by a repair, or when the store is opened again.
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
            log.warning("%d tombstones could not be written yet: %s", len(tombstones), error)
        else:
            told = [
                key
                for (key, _), absent in zip(tombstones, self._stripes.absent(stripes), strict=True)
                if len(absent) < self._copies  # at least one volume has it
            ]
            with self._mutex:
                self._written_tombstones += told
        finally:
            self._pins.unpin(stripes)


def _says_the_same(target: PushTarget, head: VersionRecord) -> bool:
    """Whether the author says nothing of the content that the head does not say."""
    return target.note in ("", head.note) and target.attributes in (None, attributes_of(head))


def _overtaken() -> StoreUnavailable:
    return StoreUnavailable("other processes kept changing the catalog; try again")


def _raise_sequence(txn: CatalogTransaction, sequence: int) -> None:
    counters = txn.counters()
    txn.set_counters(msgspec.structs.replace(counters, sequence=sequence, committed=counters.reached))

"""One batch of commits: the state it was planned on, its data for the volumes, and its entries for the catalog.

A batch is planned on what one catalog transaction has read (:class:`Basis`). Then its data is written to the volumes
while no transaction is open. A second transaction enters the batch if the state has not changed
(:meth:`BatchPlan.enter`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from storage.catalog import CatalogTransaction, Counters, FileEntry, Usage
from storage.errors import (
    ConflictError,
    FileNotFound,
    FormatError,
    InvalidArgument,
)
from storage.formats.versions import StoredVersion, read_version
from storage.sealing.user_keys import KeyFinder
from storage.shards import Shard
from storage.stripes.pushed_objects import PushedObjects
from storage.write.pending import PendingVersion


class Head(NamedTuple):
    """The catalog's state of the file of a pending version.

    Attributes:
        file_id: id of the file; None if no file has the name.
        entry: entry of the file; None if there is none.
        problem: why the entry cannot be read; empty if it can.
    """

    file_id: bytes | None
    entry: FileEntry | None
    problem: str = ""


def head_of(txn: CatalogTransaction, pending: PendingVersion) -> Head:
    """Read the catalog's state of the file of a pending version."""
    file_id = pending.file_id or txn.find(pending.target.name)
    if file_id is None:
        return Head(None, None)
    try:
        return Head(file_id, txn.file(file_id))
    except FormatError as error:
        return Head(file_id, None, str(error))


@dataclass(frozen=True, slots=True)
class Basis:
    """The catalog's state on which a batch is planned.

    Attributes:
        counters: the totals.
        heads: state of the file of each version in the batch.
        versions: the bytes of each file's newest version; None if there is none.
        usages: what the files of each owner take, by user key.
    """

    counters: Counters
    heads: list[Head]
    versions: list[bytes | None]
    usages: dict[bytes, Usage]

    @classmethod
    def read(cls, txn: CatalogTransaction, batch: Sequence[PendingVersion]) -> Basis:
        """Read the state in one transaction, so that it is consistent."""
        heads = [head_of(txn, pending) for pending in batch]
        versions = [
            txn.version(head.file_id, head.entry.head) if head.file_id is not None and head.entry is not None else None
            for head in heads
        ]
        owners = {pending.target.user for pending in batch}
        return cls(txn.counters(), heads, versions, {user: txn.usage(user) for user in owners})


class BatchPlan:
    """The plan of a batch. Each version builds on those before it.

    Args:
        batch: the versions.
        basis: state of the catalog.
        keys: finds the keys of sealed versions.

    Attributes:
        outcomes: outcome of each version planned so far, valid once the batch is entered.
        sequence: the sequence number given to the latest version; before the first one, that of the catalog.
        committed: the sequence number up to which the catalog has committed everything.
        shards: shards to append, by volume slot.
    """

    def __init__(self, batch: Sequence[PendingVersion], basis: Basis, keys: KeyFinder) -> None:
        self._batch = batch
        self._keys = keys
        self._basis = basis
        self._added: list[tuple[PendingVersion, StoredVersion, FileEntry]] = []
        self._ended: list[int] = []  # uploads whose content is the head already
        self._names: dict[bytes, bytes] = {}  # name key → id of the batch's files
        self._heads: dict[bytes, tuple[FileEntry, StoredVersion]] = {}  # file id → head set by this batch
        self._files = self._logical_bytes = 0  # changes of the totals
        self._usages = dict(basis.usages)
        self._restored = False
        self.outcomes: list[StoredVersion | BaseException] = []
        self.sequence = basis.counters.sequence
        self.committed = basis.counters.reached
        self.shards: dict[int, list[Shard]] = {}

    # -- planning --------------------------------------------------------------------------------

    @property
    def has_something(self) -> bool:
        """Whether anything has to be made durable, which is not so if all versions failed."""
        return bool(self.shards or self._restored)

    def file_of(self, at: int) -> tuple[bytes | None, FileEntry | None]:
        """Return id and entry of the file of a version, as they are after the versions before it.

        Args:
            at: index of the version in the batch.

        Raises:
            FormatError: the entry cannot be read.
            FileNotFound, InvalidArgument, ConflictError: see :func:`revisable`.
        """
        pending, head = self._batch[at], self._basis.heads[at]
        file_id = pending.file_id or self._names.get(pending.target.name) or head.file_id
        if file_id is not None and file_id in self._heads:
            entry: FileEntry | None = self._heads[file_id][0]
        elif head.problem:
            raise FormatError(head.problem)
        else:
            entry = head.entry
        return file_id, (revisable(entry, pending) if pending.file_id is not None else entry)

    def head_of(self, at: int, file_id: bytes, entry: FileEntry) -> StoredVersion:
        """Return the newest version of the file that :meth:`file_of` returned.

        Raises:
            FormatError: it cannot be read.
        """
        if file_id in self._heads:
            return self._heads[file_id][1]
        raw = self._basis.versions[at]
        try:
            if raw is None:
                raise FormatError("it is not in the catalog")
            return read_version(raw, entry.head, self._keys)
        except FormatError as error:
            raise FormatError(
                f"the newest version of {entry.filename!r} ({file_id.hex()}) cannot be read: {error}; delete the file, "
                "then push it again"
            ) from error

    def usage(self, pending: PendingVersion) -> Usage:
        """Return what the files of a version's owner take, after the versions before it."""
        return self._usages[pending.target.user]

    def add(self, pending: PendingVersion, stored: StoredVersion, replaced: FileEntry | None, taken: int) -> None:
        """Plan a version as the head of its file, in place of ``replaced``. It takes ``taken`` bytes on volumes."""
        record, target = stored.record, pending.target
        before = replaced.counted if replaced is not None else 0
        entry = FileEntry(target.user_id, target.filename, stored.version_id, record.size, before + taken)
        self._added.append((pending, stored, entry))
        self._names[target.name] = record.file_id
        self._heads[record.file_id] = entry, stored
        usage = self._usages[target.user]
        self._usages[target.user] = Usage(usage.files + (replaced is None), usage.bytes + taken, target.user_id)
        self._files += replaced is None
        self._logical_bytes += record.size - (replaced.size if replaced is not None else 0)

    def add_shards(self, shards: dict[int, list[Shard]]) -> None:
        """Plan to append shards, by volume slot."""
        for slot, batch in shards.items():
            self.shards.setdefault(slot, []).extend(batch)

    def restore(self, pending: PendingVersion) -> None:
        """Plan a version whose content already is the head: only write the shards that were missing."""
        self.add_shards(pending.shards)
        self._restored = True
        self.leave_out(pending)

    def leave_out(self, pending: PendingVersion) -> None:
        """Plan to store nothing of a version, as its content already is the head, with another profile."""
        if pending.upload is not None:
            self._ended.append(pending.upload)

    def keep_small(self, pushed: PushedObjects) -> None:
        """Keep small files of the batch, which was entered, in memory. No file of it can have been deleted yet."""
        for pending, stored, _ in self._added:
            if pending.chunk_bytes is not None:
                pushed.keep(pending.stripes[0], pending.chunk_bytes, stored.record.file_id)

    # -- the catalog -----------------------------------------------------------------------------

    def enter(self, txn: CatalogTransaction, reserve: int) -> Counters | None:
        """Enter the batch if the catalog has not changed since it was planned. Its shards must be durable.

        Args:
            txn: the transaction.
            reserve: how many sequence numbers to reserve after the last one.

        Returns:
            The new totals; None if the catalog has changed, so that nothing was entered and the batch has to be planned
            again.
        """
        now = txn.counters()
        if now.sequence != self._basis.counters.sequence or any(
            head_of(txn, pending) != head for pending, head in zip(self._batch, self._basis.heads, strict=True)
        ):
            return None
        for number in self._ended:
            txn.end_upload(number)
        for pending, stored, entry in self._added:
            self._enter_version(txn, pending, stored, entry)
        if self._added:
            now = self._counters(now, reserve)
            txn.set_counters(now)
        return now

    def _enter_version(
        self, txn: CatalogTransaction, pending: PendingVersion, stored: StoredVersion, entry: FileEntry
    ) -> None:
        file_id, target = stored.record.file_id, pending.target
        txn.put_version(file_id, stored.version_id, stored.raw)
        txn.put_nodes(pending.nodes)
        txn.hold(target.user, pending.stripes, None, pending.names, pending.hashes)
        if pending.upload is not None:
            txn.end_upload(pending.upload)
        txn.set_file(file_id, entry, target.name)

    def _counters(self, now: Counters, reserve: int) -> Counters:
        stored = self._added[-1][1]
        return Counters(
            now.files + self._files,
            now.versions + len(self._added),
            now.logical_bytes + self._logical_bytes,
            self.sequence,
            stored.record.file_id + stored.version_id,
            reserved=max(now.reserved, self.sequence + reserve),
        )


def revisable(entry: FileEntry | None, pending: PendingVersion) -> FileEntry:
    """Return a file's entry, if a pending version may become its head.

    Raises:
        FileNotFound: the file was deleted, or belongs to another user.
        InvalidArgument: the file has another name.
        ConflictError: its head is not the version's base.
    """
    if entry is None:
        raise FileNotFound("the file was deleted meanwhile")
    if entry.user_id != pending.target.user_id:
        raise FileNotFound("the file was deleted meanwhile")  # must not reveal other users' files
    if entry.filename != pending.target.filename:
        raise InvalidArgument(f"the file is called {entry.filename!r}; a version of it cannot have another name")
    if pending.base is not None and entry.head != pending.base:
        raise ConflictError(
            f"head is {entry.head.hex()}, the change was made against {pending.base.hex()}; "
            "synchronize, make the change again and retry",
            head=entry.head.hex(),
            base=pending.base.hex(),
        )
    return entry

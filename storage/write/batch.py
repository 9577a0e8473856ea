"""One batch of commits: what it was planned on, what goes to the volumes, and what it enters into the catalog.

A batch is planned on what one catalog transaction read (:class:`Basis`). It goes to the volumes with no transaction
open. A second transaction enters it if what the first one read is still so (:meth:`BatchPlan.enter`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from storage.catalog import CatalogTransaction, Counters, FileEntry
from storage.errors import (
    ConflictError,
    FileNotFound,
    FormatError,
    InvalidArgument,
)
from storage.formats.versions import StoredVersion, read_version
from storage.shards import Shard
from storage.write.pending import PendingVersion


class Head(NamedTuple):
    """The file that a pending version is of, as the catalog has it.

    Attributes:
        file_id: the file; None if none has the name.
        entry: its entry; None if there is none.
        problem: why its entry cannot be read; empty if it can.
    """

    file_id: bytes | None
    entry: FileEntry | None
    problem: str = ""


def head_of(txn: CatalogTransaction, pending: PendingVersion) -> Head:
    """What the catalog has of the file that a version is of."""
    file_id = pending.file_id or txn.find(pending.target.name)
    if file_id is None:
        return Head(None, None)
    try:
        return Head(file_id, txn.file(file_id))
    except FormatError as error:
        return Head(file_id, None, str(error))


@dataclass(frozen=True, slots=True)
class Basis:
    """What the catalog had when a batch was planned.

    Attributes:
        counters: the totals.
        heads: the file of each version.
        versions: the bytes of each file's head; None where there is none.
    """

    counters: Counters
    heads: list[Head]
    versions: list[bytes | None]

    @classmethod
    def read(cls, txn: CatalogTransaction, batch: Sequence[PendingVersion]) -> Basis:
        """Read it in one transaction, so that all of it was so at one moment."""
        heads = [head_of(txn, pending) for pending in batch]
        versions = [
            txn.version(head.file_id, head.entry.head) if head.file_id is not None and head.entry is not None else None
            for head in heads
        ]
        return cls(txn.counters(), heads, versions)


class BatchPlan:
    """What the versions of a batch add up to; each builds on those before it.

    Args:
        batch: the versions.
        basis: what the catalog had of them.

    Attributes:
        outcomes: what becomes of each version that was planned so far, once the batch is entered.
        sequence: the last one given to a version; before the first, the catalog's.
        committed: the sequence up to which the catalog had committed everything.
        shards: what goes to the volumes, by slot.
    """

    def __init__(self, batch: Sequence[PendingVersion], basis: Basis) -> None:
        self._batch = batch
        self._basis = basis
        self._added: list[tuple[PendingVersion, StoredVersion]] = []
        self._ended: list[int] = []  # uploads whose content is the head already
        self._names: dict[bytes, bytes] = {}  # file ids of this batch's files
        self._heads: dict[bytes, tuple[FileEntry, StoredVersion]] = {}  # set by this batch, by file id
        self._files = self._logical_bytes = 0  # so many more
        self._restored = False
        self.outcomes: list[StoredVersion | BaseException] = []
        self.sequence = basis.counters.sequence
        self.committed = basis.counters.reached
        self.shards: dict[int, list[Shard]] = {}

    # -- planning --------------------------------------------------------------------------------

    @property
    def has_something(self) -> bool:
        """Whether anything is to be made durable: not if every version of it failed."""
        return bool(self.shards or self._restored)

    def file_of(self, at: int) -> tuple[bytes | None, FileEntry | None]:
        """Id and entry of the file that the version at a place in the batch is of, with those before it entered.

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
        """The newest version of the file that :meth:`file_of` gave.

        Raises:
            FormatError: it cannot be read.
        """
        if file_id in self._heads:
            return self._heads[file_id][1]
        raw = self._basis.versions[at]
        try:
            if raw is None:
                raise FormatError("it is not in the catalog")
            return read_version(raw, entry.head)
        except FormatError as error:
            raise FormatError(
                f"the newest version of {entry.filename!r} ({file_id.hex()}) cannot be read: {error}; delete the file, "
                "then push it again"
            ) from error

    def add(self, pending: PendingVersion, stored: StoredVersion, replaced: FileEntry | None) -> None:
        """Make a version the head of its file, in place of ``replaced``."""
        record, target = stored.record, pending.target
        self._added.append((pending, stored))
        self._names[target.name] = record.file_id
        self._heads[record.file_id] = (
            FileEntry(target.user_id, target.filename, stored.version_id, record.size),
            stored,
        )
        self._files += replaced is None
        self._logical_bytes += record.size - (replaced.size if replaced is not None else 0)

    def add_shards(self, shards: dict[int, list[Shard]]) -> None:
        """Have shards appended with the batch, by volume slot."""
        for slot, batch in shards.items():
            self.shards.setdefault(slot, []).extend(batch)

    def restore(self, pending: PendingVersion) -> None:
        """Content that is the head already: what was missing of it has been sent again."""
        self.add_shards(pending.shards)
        self._restored = True
        if pending.upload is not None:
            self._ended.append(pending.upload)

    # -- the catalog -----------------------------------------------------------------------------

    def enter(self, txn: CatalogTransaction, reserve: int) -> Counters | None:
        """Enter the batch if all is still as it was planned on: call once its shards are durable.

        Args:
            txn: the transaction.
            reserve: how many sequences to reserve after the last one.

        Returns:
            the totals now; None if another change came first: nothing was entered, and the batch is to be planned anew.
        """
        now = txn.counters()
        if now.sequence != self._basis.counters.sequence or any(
            head_of(txn, pending) != head for pending, head in zip(self._batch, self._basis.heads, strict=True)
        ):
            return None
        for number in self._ended:
            txn.end_upload(number)
        for pending, stored in self._added:
            self._enter_version(txn, pending, stored)
        if self.has_something:
            now = self._counters(now, reserve)
            txn.set_counters(now)
        return now

    def _enter_version(self, txn: CatalogTransaction, pending: PendingVersion, stored: StoredVersion) -> None:
        file_id, target = stored.record.file_id, pending.target
        txn.put_version(file_id, stored.version_id, stored.raw)
        txn.put_nodes(pending.nodes)
        txn.hold(target.user, pending.stripes, None)
        if pending.upload is not None:
            txn.end_upload(pending.upload)
        txn.set_file(
            file_id, FileEntry(target.user_id, target.filename, stored.version_id, stored.record.size), target.name
        )

    def _counters(self, now: Counters, reserve: int) -> Counters:
        if not self._added:  # nothing is committed that was not before
            return msgspec.structs.replace(now, closed=False)
        stored = self._added[-1][1]
        return Counters(
            now.files + self._files,
            now.versions + len(self._added),
            now.logical_bytes + self._logical_bytes,
            self.sequence,
            stored.record.file_id + stored.version_id,
            reserved=max(now.reserved, self.sequence + reserve),
        )


class DeletePlan:
    """The end of some files, planned on the entries that they had.

    Args:
        sequence: the catalog's last one.
        entries: the files, by id.

    Attributes:
        sequence: the last one given to a tombstone; before the first, the catalog's.
        tombstones: (file id, bytes) of each file.
    """

    def __init__(self, sequence: int, entries: dict[bytes, FileEntry]) -> None:
        self._sequence = sequence
        self._entries = entries
        self._names: list[bytes] = []
        self.sequence = sequence
        self.tombstones: list[tuple[bytes, bytes]] = []

    def add(self, file_id: bytes, name: bytes, raw: bytes) -> None:
        """Have a file end by a tombstone; ``name`` is its key."""
        self.tombstones.append((file_id, raw))
        self._names.append(name)

    def enter(self, txn: CatalogTransaction, written: Sequence[bytes]) -> bool:
        """Enter it if all is still as it was planned on; whether it was.

        Args:
            txn: the transaction.
            written: ids of files deleted before whose tombstones are on the volumes by now.
        """
        now = txn.counters()
        if now.sequence != self._sequence:
            return False
        if any(txn.file(file_id) != entry for file_id, entry in self._entries.items()):
            return False
        for (file_id, raw), name in zip(self.tombstones, self._names, strict=True):
            txn.delete_file(file_id, name, raw)
        txn.tombstones_written(written)
        txn.set_counters(
            msgspec.structs.replace(
                now,
                files=now.files - len(self.tombstones),
                logical_bytes=now.logical_bytes - sum(self._entries[file_id].size for file_id, _ in self.tombstones),
                sequence=self.sequence,
                closed=False,
                committed=None,
            )
        )
        return True


def revisable(entry: FileEntry | None, pending: PendingVersion) -> FileEntry:
    """The entry of the file that a version is of.

    Raises:
        FileNotFound: it was deleted, or is another user's.
        InvalidArgument: the file has another name.
        ConflictError: its head is not what the version was made from.
    """
    if entry is None:
        raise FileNotFound("the file was deleted meanwhile")
    if entry.user_id != pending.target.user_id:
        raise FileNotFound("the file was deleted meanwhile")  # others' files must not show
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

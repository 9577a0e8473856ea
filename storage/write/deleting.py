"""Plans of deletions: what a catalog transaction enters, if the state on which it was planned has not changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from storage.catalog import Catalog, CatalogTransaction, Counters, FileEntry, user_key
from storage.catalog.ended import Ended
from storage.errors import CatalogBehind, FormatError, VersionNotFound
from storage.formats.authenticity import Authority
from storage.formats.tombstones import sign_tombstone, sign_version_tombstone, version_key
from storage.formats.versions import StoredVersion, read_version
from storage.sealing.user_keys import KeyFinder
from storage.write.quotas import Quotas

Check = Callable[[bytes, FileEntry | None], FileEntry]
"""Given an id and its entry, returns the entry if the caller may delete the file; raises otherwise."""

NameOf = Callable[[str], bytes]
"""Returns the catalog's key of a filename."""


class Deletion(Protocol):
    """A planned deletion."""

    @property
    def tombstones(self) -> Sequence[tuple[bytes, bytes]]:
        """The (key, bytes) of each tombstone."""

    def enter(self, txn: CatalogTransaction, written: Sequence[bytes]) -> bool:
        """Enter it if the catalog has not changed since it was planned.

        Args:
            txn: the transaction.
            written: keys of earlier tombstones that are now on the volumes.

        Returns:
            Whether it was entered.
        """

    def settle(self, quotas: Quotas) -> None:
        """Tell what it leaves on the volumes, once it was entered."""


class FilesDeletion:
    """The plan for deleting some files.

    Args:
        sequence: the catalog's last sequence number.
        entries: the files' entries, by id.

    Attributes:
        tombstones: (key, bytes) of each tombstone.
    """

    def __init__(self, sequence: int, entries: dict[bytes, FileEntry]) -> None:
        self._sequence = sequence
        self._entries = entries
        self._names: list[bytes] = []
        self._last = sequence
        self.tombstones: list[tuple[bytes, bytes]] = []

    @classmethod
    def planned(
        cls,
        read: tuple[int, dict[bytes, FileEntry]],
        name: NameOf,
        next_sequence: Callable[[int], int],
        authority: Authority,
    ) -> FilesDeletion:
        """Plan the deletion of the files that were read with the last sequence number."""
        plan = cls(*read)
        for file_id, entry in plan._entries.items():
            plan._last = next_sequence(plan._last)
            plan.tombstones.append((file_id, sign_tombstone(file_id, plan._last, authority)))
            plan._names.append(name(entry.filename))
        return plan

    def enter(self, txn: CatalogTransaction, written: Sequence[bytes]) -> bool:
        """See :meth:`Deletion.enter`."""
        now = txn.counters()
        if now.sequence != self._sequence:
            return False
        if any(txn.file(file_id) != entry for file_id, entry in self._entries.items()):
            return False
        for (file_id, raw), name in zip(self.tombstones, self._names, strict=True):
            txn.delete_file(file_id, name, raw)
        txn.tombstones_written(written)
        bytes_gone = sum(entry.size for entry in self._entries.values())
        txn.set_counters(_after(now, self._last, files=-len(self.tombstones), logical_bytes=-bytes_gone))
        return True

    def settle(self, quotas: Quotas) -> None:
        """See :meth:`Deletion.settle`."""
        for entry in self._entries.values():
            quotas.left(user_key(entry.user_id.encode()), entry.counted)


@dataclass(frozen=True, slots=True)
class VersionDeletion:
    """The plan for deleting one of several versions of a file.

    Attributes:
        basis: the catalog's last sequence number.
        file_id: id of the file.
        before: entry of the file.
        after: its entry then.
        name: key of its name.
        version: the version.
        former: the version before it; None: it is the first.
        head: the newest version of the file then.
        sequence: the sequence number of its tombstone.
        raw: bytes of its tombstone.
    """

    basis: int
    file_id: bytes
    before: FileEntry
    after: FileEntry
    name: bytes
    version: StoredVersion
    former: StoredVersion | None
    head: StoredVersion
    sequence: int
    raw: bytes

    @property
    def tombstones(self) -> Sequence[tuple[bytes, bytes]]:
        """Its tombstone."""
        return [(version_key(self.file_id, self.version.version_id), self.raw)]

    def enter(self, txn: CatalogTransaction, written: Sequence[bytes]) -> bool:
        """See :meth:`Deletion.enter`."""
        now = txn.counters()
        if now.sequence != self.basis or txn.file(self.file_id) != self.before:
            return False
        txn.delete_version(self.file_id, self.version.version_id, self.raw)
        if self.after != self.before:
            txn.set_file(self.file_id, self.after, self.name)
        txn.tombstones_written(written)
        txn.set_counters(_after(now, self.sequence, logical_bytes=self.after.size - self.before.size))
        return True

    def settle(self, quotas: Quotas) -> None:
        """See :meth:`Deletion.settle`."""
        quotas.thinned(self.before.user_id, self.former, self.version)


@dataclass(frozen=True, slots=True)
class FormerDeletion:
    """The plan for deleting former versions of some files, whose heads stay.

    Attributes:
        basis: the catalog's last sequence number.
        entries: entries of the files, by id.
        doomed: each version, with the one before it; None: it is the first.
        sequence: the sequence number of the last tombstone.
        tombstones: (key, bytes) of each tombstone.
    """

    basis: int
    entries: Mapping[bytes, FileEntry]
    doomed: Sequence[tuple[StoredVersion, StoredVersion | None]]
    sequence: int
    tombstones: Sequence[tuple[bytes, bytes]]

    def enter(self, txn: CatalogTransaction, written: Sequence[bytes]) -> bool:
        """See :meth:`Deletion.enter`."""
        now = txn.counters()
        if now.sequence != self.basis or any(txn.file(file_id) != entry for file_id, entry in self.entries.items()):
            return False
        for (version, _), (_, raw) in zip(self.doomed, self.tombstones, strict=True):
            txn.delete_version(version.record.file_id, version.version_id, raw)
        txn.tombstones_written(written)
        if self.doomed:
            txn.set_counters(_after(now, self.sequence))
        return True

    def settle(self, quotas: Quotas) -> None:
        """See :meth:`Deletion.settle`."""
        for version, former in self.doomed:
            quotas.thinned(version.record.user_id, former, version)


class Former(NamedTuple):
    """A former version of a file, and the head that the file has."""

    file_id: bytes
    version_id: bytes
    head: bytes


@dataclass(frozen=True, slots=True)
class VersionDeletions:
    """Plans deletions of single versions.

    Attributes:
        catalog: the store's catalog.
        keys: finds the keys of sealed versions.
        authority: signs tombstones.
    """

    catalog: Catalog
    keys: KeyFinder
    authority: Authority

    def plan(
        self, file_id: bytes, version_id: bytes, check: Check, name: NameOf, next_sequence: Callable[[int], int]
    ) -> FilesDeletion | VersionDeletion:
        """Plan the deletion of a version: of the whole file, if it has no other.

        Raises:
            VersionNotFound: the file has no such version.
            CatalogBehind: it is the newest one, and the one before it was not found by a rebuild.
            FormatError: the record of this version, or of one beside it, cannot be read.
        """

        def read(txn: CatalogTransaction) -> tuple[int, FileEntry, bytes | None]:
            entry = check(file_id, txn.file(file_id))
            is_there = version_id == entry.head or txn.tombstone(version_key(file_id, version_id)) is None
            return txn.counters().sequence, entry, txn.version(file_id, version_id) if is_there else None

        basis, entry, raw = self.catalog.transact(read)
        if raw is None:
            raise VersionNotFound(f"{entry.filename!r} has no version {version_id.hex()}; see its history")
        version = read_version(raw, version_id, self.keys)
        before = Ended(self.catalog).before(file_id, version.record.parent)
        former = self._read(file_id, before)
        is_head = version_id == entry.head
        if is_head and before is not None and former is None:
            raise CatalogBehind(
                f"{entry.filename!r} has an earlier version, {before.hex()}, that no rebuild has found; rebuild with "
                "all volumes first, or delete the whole file"
            )
        head = former if is_head else self._read(file_id, entry.head)
        if head is None:
            return FilesDeletion.planned((basis, {file_id: entry}), name, next_sequence, self.authority)
        after = msgspec.structs.replace(entry, head=head.version_id, size=head.record.size) if is_head else entry
        sequence = next_sequence(basis)
        tombstone = sign_version_tombstone(file_id, version_id, version.record.parent, sequence, self.authority)
        key = name(entry.filename)
        return VersionDeletion(basis, file_id, entry, after, key, version, former, head, sequence, tombstone)

    def plan_former(self, wanted: Sequence[Former], next_sequence: Callable[[int], int]) -> FormerDeletion:
        """Plan the deletion of former versions, except those whose files have another head by now, and of what is gone.

        Raises:
            FormatError: the record of one of them cannot be read.
        """

        def read(txn: CatalogTransaction) -> tuple[int, dict[bytes, FileEntry], list[tuple[Former, bytes]]]:
            entries: dict[bytes, FileEntry] = {}
            found: list[tuple[Former, bytes]] = []
            for one in wanted:
                entry, raw = txn.file(one.file_id), txn.version(one.file_id, one.version_id)
                is_there = raw is not None and txn.tombstone(version_key(one.file_id, one.version_id)) is None
                if entry is not None and raw is not None and is_there and one.version_id != one.head == entry.head:
                    entries[one.file_id] = entry
                    found.append((one, raw))
            return txn.counters().sequence, entries, found

        basis, entries, found = self.catalog.transact(read)
        ended, sequence = Ended(self.catalog), basis
        doomed: list[tuple[StoredVersion, StoredVersion | None]] = []
        tombstones: list[tuple[bytes, bytes]] = []
        for one, raw in found:
            version = read_version(raw, one.version_id, self.keys)
            parent, sequence = version.record.parent, next_sequence(sequence)
            doomed.append((version, self._readable(one.file_id, ended.before(one.file_id, parent))))
            signed = sign_version_tombstone(one.file_id, one.version_id, parent, sequence, self.authority)
            tombstones.append((version_key(one.file_id, one.version_id), signed))
        return FormerDeletion(basis, entries, doomed, sequence, tombstones)

    def _readable(self, file_id: bytes, version_id: bytes | None) -> StoredVersion | None:
        try:
            return self._read(file_id, version_id)
        except FormatError:
            return None  # which matters for an estimate only

    def _read(self, file_id: bytes, version_id: bytes | None) -> StoredVersion | None:
        """A version of a file; None if it is not in the catalog."""
        raw = None if version_id is None else self.catalog.version(file_id, version_id)
        return None if raw is None or version_id is None else read_version(raw, version_id, self.keys)


def _after(now: Counters, sequence: int, *, files: int = 0, logical_bytes: int = 0) -> Counters:
    """The totals after a deletion."""
    return msgspec.structs.replace(
        now,
        files=now.files + files,
        logical_bytes=now.logical_bytes + logical_bytes,
        sequence=sequence,
        closed=False,
        committed=None,
    )

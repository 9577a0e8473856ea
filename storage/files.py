"""Looks up files and versions, by id or by name, for the user who owns them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Sequence

from cachetools import LRUCache

from storage.catalog import Catalog, FileEntry, FileHead, name_key, user_key
from storage.catalog.ended import Ended
from storage.errors import ConflictError, FileNotFound, FormatError, StorageError, VersionNotFound
from storage.formats.version_records import FILE_ID_BYTES
from storage.formats.versions import StoredVersion, Version, read_version
from storage.sealing.user_keys import KeyFinder

log = logging.getLogger(__name__)

_VERSION_ID_BYTES = 32
_OPENED_MAX = 1024
_OPENED_BYTES_MAX = 2048


class Files:
    """Looks up files and their chains of versions in a catalog. Thread-safe.

    Opening a sealed version takes half as long as reading a small file, so that versions that were opened lately are
    kept in memory until their file is deleted: at most 1,024, of at most 2 KiB each.

    Args:
        catalog: the store's catalog.
        keys: finds the keys of sealed versions.
    """

    def __init__(self, catalog: Catalog, keys: KeyFinder) -> None:
        self._catalog = catalog
        self._keys = keys
        self._ended = Ended(catalog)
        self._opened: LRUCache[bytes, StoredVersion] = LRUCache(_OPENED_MAX)
        self._lock = threading.Lock()

    def entry(self, file_id: str, user_id: str) -> tuple[bytes, FileEntry]:
        """A user's file: its id in bytes, and its entry.

        Raises:
            FileNotFound: there is none with this id, or it is another user's.
        """
        identifier = parsed_id(file_id)
        entry = self._catalog.file(identifier) if identifier is not None else None
        return identifier or b"", permitted(entry, file_id, user_id)

    def stored(self, file_id: bytes, entry: FileEntry, version_id: str | None) -> StoredVersion:
        """A version of a file, the head by default.

        Raises:
            VersionNotFound: the file has no such version.
        """
        identifier = entry.head if version_id is None else _parsed_hex(version_id, _VERSION_ID_BYTES)
        raw = None
        if identifier is not None and (identifier == entry.head or not self._ended.has(file_id, identifier)):
            raw = self._catalog.version(file_id, identifier)
        if identifier is None or raw is None:
            raise _no_version(entry, version_id)
        return self._read(raw, identifier)

    def _read(self, raw: bytes, version_id: bytes) -> StoredVersion:
        """Read a version's record, or return what was made of the same bytes with the same keys before."""
        with self._lock:
            kept = self._opened.get(version_id)
        if kept is not None and kept.raw == raw and self._has_same_keys(kept):
            return kept
        stored = read_version(raw, version_id, self._keys)
        if len(raw) <= _OPENED_BYTES_MAX:
            with self._lock:
                self._opened[version_id] = stored
        return stored

    def _has_same_keys(self, kept: StoredVersion) -> bool:
        return kept.keys is None or kept.keys is self._keys.keys_of(kept.record.user_id)

    def forget(self, file_ids: Collection[bytes]) -> list[StoredVersion]:
        """Drop the kept versions of these files from memory, and return them."""
        gone = frozenset(file_ids)
        with self._lock:
            versions = [kept for kept in self._opened.values() if kept.record.file_id in gone]
            for version in versions:
                del self._opened[version.version_id]
        return versions

    def version(self, file_id: str, user_id: str, version_id: str | None) -> StoredVersion:
        """A version of a user's file, the head by default.

        Raises:
            FileNotFound: there is none with this id, or it is another user's.
            VersionNotFound: the file has no such version.
        """
        if version_id is not None:
            return self.stored(*self.entry(file_id, user_id), version_id)
        head = self.newest([file_id], user_id)[0]
        if isinstance(head, StorageError):
            raise head
        return head

    def newest(self, file_ids: Sequence[str], user_id: str) -> list[StoredVersion | StorageError]:
        """The heads of a user's files, or in the place of each that cannot be had the error of :meth:`version`."""
        parsed = [parsed_id(file_id) for file_id in file_ids]
        found = iter(self._catalog.heads([identifier for identifier in parsed if identifier is not None]))
        heads: list[StoredVersion | StorageError] = []
        for file_id, identifier in zip(file_ids, parsed, strict=True):
            head = None if identifier is None else next(found)
            try:
                heads.append(head if isinstance(head, StorageError) else self._opened_head(head, file_id, user_id))
            except StorageError as error:
                heads.append(error)
        return heads

    def _opened_head(self, head: FileHead | None, file_id: str, user_id: str) -> StoredVersion:
        entry = permitted(None if head is None else head.entry, file_id, user_id)
        if head is None or head.raw is None:
            raise _no_version(entry, None)
        return self._read(head.raw, entry.head)

    def identifiers(self, file_id: str, version_id: str, user_id: str) -> tuple[bytes, bytes]:
        """The ids of a user's file and of a version, in bytes; the file may have no such version.

        Raises:
            FileNotFound: there is no file with this id, or it is another user's.
            VersionNotFound: this is not the id of any version.
        """
        identifier, entry = self.entry(file_id, user_id)
        version = _parsed_hex(version_id, _VERSION_ID_BYTES)
        if version is None:
            raise _no_version(entry, version_id)
        return identifier, version

    def base(self, file_id: str, user_id: str, version_id: str) -> tuple[str, StoredVersion]:
        """The name of a user's file, and a version of it to which a change can be applied.

        Raises:
            FileNotFound: there is none with this id, or it is another user's.
            VersionNotFound: the file has no such version.
            ConflictError: the version is not the head.
        """
        identifier, entry = self.entry(file_id, user_id)
        named = _parsed_hex(version_id, _VERSION_ID_BYTES)
        has_ended = named is not None and named != entry.head and self._ended.has(identifier, named)
        base = self.stored(identifier, entry, None if has_ended else version_id)
        if has_ended or base.version_id != entry.head:
            raise ConflictError(
                f"head is {entry.head.hex()}, the change was made against {version_id}; "
                "synchronize, make the change again and retry",
                head=entry.head.hex(),
                base=version_id,
            )
        return entry.filename, base

    def named(self, filename: str, user_id: str) -> bytes | None:
        """The id of the file with this name; None if there is none."""
        return self._catalog.find(name_of(user_key(user_id.encode()), filename))

    def find(self, filename: str, user_id: str) -> StoredVersion | None:
        """The head of the file with this name; None if there is none."""
        identifier = self.named(filename, user_id)
        entry = self._catalog.file(identifier) if identifier is not None else None
        return None if identifier is None or entry is None else self.stored(identifier, entry, None)

    def history(self, file_id: str, user_id: str, before: str | None) -> Iterator[Version]:
        """Versions from newest to oldest, starting with the one before ``before``, or with the head if it is None.

        ``before`` may have been deleted: so whoever reads page by page is not disturbed.

        Raises:
            FileNotFound: there is none with this id, or it is another user's.
            VersionNotFound: the file has no version ``before``.
            FormatError: (from the iterator) the first version cannot be read.
        """
        identifier, entry = self.entry(file_id, user_id)
        first: bytes | None = entry.head
        if before is not None:
            named = _parsed_hex(before, _VERSION_ID_BYTES)
            if named is not None and named != entry.head and self._ended.has(identifier, named):
                first = self._ended.before(identifier, named)
            else:
                first = self.stored(identifier, entry, before).record.parent
        return self._chain(identifier, entry, first)

    def _chain(self, file_id: bytes, entry: FileEntry, first: bytes | None) -> Iterator[Version]:
        current = first if first == entry.head else self._ended.before(file_id, first)
        while current is not None:
            raw = self._catalog.version(file_id, current)
            if raw is None:
                return  # a rebuild could not find the older part of the chain
            try:
                stored = self._read(raw, current)
            except FormatError as error:
                if current == first:
                    raise
                log.warning("the history of %r ends early: %s", entry.filename, error)
                return
            yield stored.public()
            current = self._ended.before(file_id, stored.record.parent)

    def heads(self, user_id: str, prefix: str, after: str | None, limit: int) -> list[Version]:
        """Heads of a user's files, ordered by the UTF-8 bytes of their names (the first 440 of them)."""
        user = user_key(user_id.encode())
        start = name_of(user, after) if after is not None else None
        found: list[Version] = []
        while len(found) < limit:
            page = self._catalog.names(user, prefix.encode(), start, limit)
            for _, identifier in page:
                # Keys have only the beginning of long names, and a file may be deleted meanwhile.
                head = self.head(identifier) if len(found) < limit else None
                if head is not None and head.filename.startswith(prefix):
                    found.append(head)
            if len(page) < limit:
                break
            start = page[-1][0]
        return found

    def head(self, file_id: bytes) -> Version | None:
        """The head of a file; None if it was deleted, or cannot be read: one such file must not hide the others."""
        try:
            entry = self._catalog.file(file_id)
            return None if entry is None else self.stored(file_id, entry, None).public()
        except (FormatError, VersionNotFound) as error:
            log.warning("a file is left out of a listing: %s", error)
            return None


def permitted(entry: FileEntry | None, file_id: str, user_id: str) -> FileEntry:
    """A file's entry, if it is this user's.

    Raises:
        FileNotFound: there is none, or it is another user's. The error is the same, to reveal nothing about others.
    """
    if entry is None or entry.user_id != user_id:
        raise FileNotFound(f"there is no file {file_id[:80]!r}; list the files to see what there is")
    return entry


def _no_version(entry: FileEntry, version_id: str | None) -> VersionNotFound:
    return VersionNotFound(f"{entry.filename!r} has no version {str(version_id)[:80]!r}; see its history")


def parsed_id(file_id: str) -> bytes | None:
    """A file id as bytes; None if it is malformed."""
    return _parsed_hex(file_id, FILE_ID_BYTES)


def name_of(user: bytes, filename: str) -> bytes:
    """The catalog's key of a user's filename."""
    return name_key(user, filename.encode())


def _parsed_hex(text: str, length: int) -> bytes | None:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        return None
    return raw if len(raw) == length and len(text) == 2 * length else None

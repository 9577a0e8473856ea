"""What of files has ended, by the tombstones in a catalog that is being rebuilt."""

from __future__ import annotations

from typing import NamedTuple

from storage.catalog import Catalog
from storage.errors import FormatError
from storage.formats.tombstones import VersionTombstone, decode_tombstone, file_of
from storage.maintenance.intake import Tally


class Ends(NamedTuple):
    """What of a file has ended: all of it, or single versions, given with the one before each by its record."""

    deleted: bool
    versions: dict[bytes, bytes | None]

    def before(self, version_id: bytes | None) -> bytes | None:
        """The first of a version and those before it that has not ended; None if all have, or it is None."""
        seen: set[bytes] = set()
        while version_id is not None and version_id in self.versions:
            seen.add(version_id)
            before = self.versions[version_id]
            version_id = before if before not in seen else None
        return version_id


class Graves:
    """Tells what of files has ended, if asked in the order of their ids. Memory is needed for one file at a time."""

    def __init__(self, catalog: Catalog, tally: Tally) -> None:
        self._left = catalog.tombstones()
        self._tally = tally
        self._parent: bytes | None = None  # of the version that ended with the one read last
        self._next = self._read()

    def of(self, file_id: bytes) -> Ends:
        """What of a file has ended; ids must not decrease from call to call."""
        deleted, versions = False, {}
        while self._next is not None and (found := file_of(self._next))[0] <= file_id:
            if found == (file_id, b""):
                deleted = True
            elif found[0] == file_id:
                versions[found[1]] = self._parent
            self._next = self._read()
        return Ends(deleted, versions)

    def read_rest(self) -> None:
        """Read the remaining tombstones, since their sequences count."""
        while self._next is not None:
            self._next = self._read()

    def _read(self) -> bytes | None:
        for key, raw in self._left:
            file_id, version_id = file_of(key)
            try:
                tombstone = decode_tombstone(raw)
            except FormatError as error:
                if version_id:  # what comes before it is not known, and must not be lost
                    self._tally.skip(f"the tombstone of version {version_id.hex()}, which may be back: {error}")
                    continue
                self._tally.skip(f"the tombstone of file {file_id.hex()}, which stays deleted: {error}")
                return key
            self._tally.sequence = max(self._tally.sequence, tombstone.sequence)
            self._parent = tombstone.parent if isinstance(tombstone, VersionTombstone) else None
            return key
        return None

"""Versions that were deleted one by one, while others of their files remain."""

from __future__ import annotations

from storage.catalog.port import Catalog
from storage.errors import FormatError
from storage.formats.tombstones import VersionTombstone, decode_tombstone, version_key


class Ended:
    """The versions that had been deleted up to a sequence number.

    Args:
        catalog: the store's catalog.
        sequence: tombstones with higher numbers do not count; None: all count.
    """

    def __init__(self, catalog: Catalog, sequence: int | None = None) -> None:
        self._catalog = catalog
        self._sequence = sequence

    def has(self, file_id: bytes, version_id: bytes) -> bool:
        """Whether a version had been deleted."""
        return self._tombstone(file_id, version_id) is not None

    def before(self, file_id: bytes, version_id: bytes | None) -> bytes | None:
        """The first of a version and those before it that had not been deleted; None if all had, or it is None."""
        seen: set[bytes] = set()
        while version_id is not None and (tombstone := self._tombstone(file_id, version_id)) is not None:
            seen.add(version_id)
            version_id = tombstone.parent if tombstone.parent not in seen else None
        return version_id

    def _tombstone(self, file_id: bytes, version_id: bytes) -> VersionTombstone | None:
        raw = self._catalog.tombstone(version_key(file_id, version_id))
        if raw is None:
            return None
        try:
            tombstone = decode_tombstone(raw)
        except FormatError:
            return None  # what it ended stays, as it cannot be known what comes before it
        if not isinstance(tombstone, VersionTombstone):
            return None
        return tombstone if self._sequence is None or tombstone.sequence <= self._sequence else None

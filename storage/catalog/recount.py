"""Recomputes a catalog's totals and times from its other records if they cannot be read."""

from __future__ import annotations

from collections.abc import Iterable

from storage.catalog.port import Counters, Holding, StoredEntry, StoreTime, UploadRecord
from storage.errors import FormatError
from storage.formats.tombstones import decode_tombstone
from storage.formats.versions import outline


def recounted(stored: Iterable[StoredEntry], tombstones: Iterable[tuple[bytes, bytes]]) -> Counters:
    """Compute the totals of versions and tombstones.

    It is unknown whether the store was closed in good order, so the result says that it was not.
    """
    files: dict[bytes, int] = {}
    versions = sequence = latest_sequence = 0
    latest = b""
    for one in stored:
        versions += 1
        if one.entry is not None or one.problem:
            files[one.file_id] = one.entry.size if one.entry is not None else 0
        try:
            committed = outline(one.raw, one.version_id).sequence
        except FormatError:
            continue  # reads of this version report it
        sequence = max(sequence, committed)
        if one.entry is not None and committed > latest_sequence:
            latest, latest_sequence = one.file_id + one.version_id, committed
    for _, raw in tombstones:
        try:
            sequence = max(sequence, decode_tombstone(raw).sequence)
        except FormatError:
            continue  # a rebuild reports it
    return Counters(len(files), versions, sum(files.values()), sequence, latest)


def time_from(uploads: dict[int, UploadRecord], holdings: Iterable[Holding]) -> StoreTime:
    """Return the earliest time that is consistent with uploads and claims, so that no upload lapses too early."""
    named = (number for holding in holdings for number in holding.uploads)
    since = [record.interrupted_s for record in uploads.values() if record.interrupted_s is not None]
    return StoreTime(max([0.0, *since]), max([0, *uploads, *named]))

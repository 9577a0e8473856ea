"""Totals and times of a catalog, derived from its other records where their own cannot be read."""

from __future__ import annotations

from collections.abc import Iterable

from storage.catalog.port import Counters, Holding, StoredEntry, StoreTime, UploadRecord
from storage.errors import FormatError
from storage.formats.versions import decode_tombstone, read_version


def recounted(stored: Iterable[StoredEntry], tombstones: Iterable[tuple[bytes, bytes]]) -> Counters:
    """The totals of these versions and tombstones.

    Whether the store was closed in good order is not known, so that it counts as not.
    """
    files: dict[bytes, int] = {}
    versions = sequence = latest_sequence = 0
    latest = b""
    for one in stored:
        versions += 1
        if one.entry is not None or one.problem:
            files[one.file_id] = one.entry.size if one.entry is not None else 0
        try:
            committed = read_version(one.raw, one.version_id).record.sequence
        except FormatError:
            continue  # whoever reads the version is told
        sequence = max(sequence, committed)
        if one.entry is not None and committed > latest_sequence:
            latest, latest_sequence = one.file_id + one.version_id, committed
    for _, raw in tombstones:
        try:
            sequence = max(sequence, decode_tombstone(raw).sequence)
        except FormatError:
            continue  # a rebuild tells of it
    return Counters(len(files), versions, sum(files.values()), sequence, latest)


def time_from(uploads: dict[int, UploadRecord], holdings: Iterable[Holding]) -> StoreTime:
    """The earliest time that agrees with the uploads and claims there are: nothing lapses too soon by it."""
    named = (number for holding in holdings for number in holding.uploads)
    since = [record.interrupted_s for record in uploads.values() if record.interrupted_s is not None]
    return StoreTime(max([0.0, *since]), max([0, *uploads, *named]))

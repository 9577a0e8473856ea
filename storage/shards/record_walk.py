"""Listing all records of some kinds on a volume."""

from __future__ import annotations

from collections.abc import Iterator

from storage.batching import batched
from storage.keys import Kind, ShardKey, kind_of
from storage.limits import MIB
from storage.shards.index import ShardIndex
from storage.shards.port import CorruptShard, Shard, VolumeUnavailable
from storage.shards.reading import Reader
from storage.shards.record import HEADER_BYTES, SEGMENT_HEADER_BYTES
from storage.shards.scan import Gap, ScannedRecord, scan_records
from storage.shards.segment_files import SegmentFiles
from storage.shards.segment_table import SegmentTable

_PAGE_OF_RECORDS_BYTES = 256 * 1024  # small, as callers may hold a page or two of many volumes
_SCANNED_TOGETHER_BYTES = 16 * MIB
_READ_TOGETHER = 64


class RecordWalk:
    """See :meth:`ShardStore.records`.

    Args:
        key: key for the tags of the volume's records.
        files: the segment files.
        table: the existing segments.
        index: shows which records are valid.
        reader: reads records that a scan has skipped.
    """

    def __init__(
        self, key: bytes, *, files: SegmentFiles, table: SegmentTable, index: ShardIndex, reader: Reader
    ) -> None:
        self._key = key
        self._files = files
        self._table = table
        self._index = index
        self._reader = reader

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        """See :meth:`ShardStore.records`."""
        passed: list[OSError] = []

        def go_past(error: OSError) -> bool:
            passed[:] = [error]
            return True

        for number in self._table.numbers():
            file, state = self._files.file(number), self._table.get(number)
            if file is None or state is None:
                continue
            scan = scan_records(file, self._key, SEGMENT_HEADER_BYTES, state.size, go_past=go_past)
            yield from self._pages(scan, kinds)
        if passed:
            yield from self._pages_by_index(kinds)

    def _pages(self, scan: Iterator[ScannedRecord | Gap], kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        page: list[Shard] = []
        size, scanned = 0, 0
        for found in scan:
            # Dropped records may still be on disk, and must not come back.
            if (
                isinstance(found, ScannedRecord)
                and found.intact
                and kind_of(found.header.key) in kinds
                and self._index.get(found.header.key) is not None
            ):
                page.append(found.copied())
                size += HEADER_BYTES + found.header.payload_length
            scanned += found.stop - found.offset
            if size >= _PAGE_OF_RECORDS_BYTES or scanned >= _SCANNED_TOGETHER_BYTES:
                yield page
                page, size, scanned = [], 0, 0
        yield page

    def _pages_by_index(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        """Read all records by the index, after a scan that had to skip pages, which may have contained records."""
        unread: list[VolumeUnavailable] = []

        def read(key: ShardKey) -> Shard | None:
            if kind_of(key) not in kinds or self._index.get(key) is None:
                return None
            try:
                return self._reader.read(key)
            except CorruptShard:
                return None
            except VolumeUnavailable as error:
                unread[:] = [error]
                return None

        for keys in batched(self._reader.keys(), _READ_TOGETHER):
            yield [shard for key in keys if (shard := read(key)) is not None]
        if unread:
            raise unread[0]

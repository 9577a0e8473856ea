"""Reading everything on a volume to find bad data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from storage.keys import ShardKey
from storage.shards.durability import Durability
from storage.shards.filesystem import VolumeFile
from storage.shards.index import ShardIndex
from storage.shards.port import CorruptShard, DamagedRanges, Verdict, VolumeUnavailable
from storage.shards.quarantine import Quarantine
from storage.shards.reading import Reader
from storage.shards.record import SEGMENT_HEADER_BYTES
from storage.shards.scan import Gap, scan_records
from storage.shards.sectors import any_page
from storage.shards.segment_files import SegmentFiles
from storage.shards.segment_table import SegmentTable
from storage.shards.unread import UnreadParts


class Scrub:
    """Finds bad bytes segment by segment, or checks single shards.

    Args:
        key: key for the tags of the volume's records.
        files: the segment files.
        table: sizes of segments.
        index: the index, which is checked as well.
        reader: reads single shards.
        quarantine: sets bad shards aside, and restores those that can be read again.
        unread: parts that could not be read; they are read again first.
        durability: writes the index to disk before it is checked.
    """

    def __init__(
        self,
        key: bytes,
        *,
        files: SegmentFiles,
        table: SegmentTable,
        index: ShardIndex,
        reader: Reader,
        quarantine: Quarantine,
        unread: UnreadParts,
        durability: Durability,
    ) -> None:
        self._key = key
        self._files = files
        self._table = table
        self._index = index
        self._reader = reader
        self._quarantine = quarantine
        self._unread = unread
        self._durability = durability

    def damaged_ranges(self, progress: Callable[[int], None], segments: Iterable[int] | None = None) -> DamagedRanges:
        """Read and verify segments; return the byte ranges that are bad or cannot be read.

        Args:
            progress: called with numbers of bytes read.
            segments: segments to read; default all.

        Raises:
            VolumeUnavailable: the disk cannot read any part of a segment, or the machine cannot open it.
        """
        bad = DamagedRanges()
        self._durability.flush_index()
        self._index.check()
        self._unread.look_again()
        self._quarantine.restore_readable()
        for number in sorted(self._table.numbers() if segments is None else segments):
            state = self._table.get(number)
            if state is None:
                continue
            file = self._files.file(number)
            indexed = state.size  # fixed now: records appended during the scan are not checked
            size = min(indexed, self._files.length(file)) if file else 0
            if file is not None:
                self._require_answer(file)
                self._read(file, number, size, bad, progress)
            if size < indexed and number in self._table:
                bad.add(number, size, indexed)
        return bad

    def _require_answer(self, file: VolumeFile) -> None:
        """Check that the disk can read a segment's first block. If so, later read errors are bad sectors."""
        self._files.drop_cache(file)
        self._files.fill(file, [memoryview(bytearray(SEGMENT_HEADER_BYTES))], SEGMENT_HEADER_BYTES, 0)

    def _read(
        self, file: VolumeFile, number: int, size: int, bad: DamagedRanges, progress: Callable[[int], None]
    ) -> None:
        for found in scan_records(file, self._key, SEGMENT_HEADER_BYTES, size, go_past=any_page):
            if isinstance(found, Gap) or not found.intact:
                bad.add(number, found.offset, found.stop)
            progress(found.stop - found.offset)

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """See :meth:`ShardStore.check`."""
        return [self._check_one(key) for key in keys]

    def _check_one(self, key: ShardKey) -> Verdict:
        while True:
            place = self._index.get(key)
            try:
                return Verdict.MISSING if self._reader.read(key) is None else Verdict.GOOD
            except CorruptShard:
                if place is not None and self._quarantine.discard(key, place):
                    return Verdict.ROTTEN
                if place == self._index.get(key):  # otherwise a collect has moved it
                    return Verdict.UNREADABLE
            except VolumeUnavailable:
                return Verdict.UNREADABLE

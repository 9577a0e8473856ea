"""Brings the index of a volume up to date with its segments when the volume is opened."""

from __future__ import annotations

import logging

from storage.shards.condition import Condition
from storage.shards.durability import Durability
from storage.shards.entries import Entries
from storage.shards.index import IndexDamaged, SegmentState, ShardIndex, Unread
from storage.shards.record import SEGMENT_HEADER_BYTES
from storage.shards.scan import PAGE_BYTES, Gap, scan_records
from storage.shards.sectors import BadSectors
from storage.shards.segment_files import SegmentFiles
from storage.shards.segment_table import SegmentTable
from storage.shards.unflushed import Unflushed
from storage.system.faults import Fault, fault_of

log = logging.getLogger(__name__)


class Replay:
    """Fills the table of segments, and indexes the records written since the index was last flushed.

    Runs before the volume is used, and therefore without its lock.

    Args:
        key: key for the tags of the volume's records.
        files: the segments' files.
        table: the table to fill.
        index: the index to complete, or to make again if it is damaged.
        entries: adds records to the index.
        unflushed: gets what the next sync has to flush.
        durability: flushes the index when many entries are waiting.
        condition: is told if the disk is read-only.

    Attributes:
        shrank: whether segments that the index knew of were gone or cut short.
    """

    def __init__(
        self,
        key: bytes,
        *,
        files: SegmentFiles,
        table: SegmentTable,
        index: ShardIndex,
        entries: Entries,
        unflushed: Unflushed,
        durability: Durability,
        condition: Condition,
    ) -> None:
        self._key = key
        self._files = files
        self._table = table
        self._index = index
        self._entries = entries
        self._unflushed = unflushed
        self._durability = durability
        self._condition = condition
        self.shrank = False

    def run(self) -> None:
        """Replay the segments; make the index again if it is damaged.

        Raises:
            OSError: the disk failed with something other than single bad sectors.
            StorageError: the index can be neither read nor written.
        """
        try:
            self._run_once()
        except IndexDamaged:
            self._index.clear()
            self._run_once()

    def _run_once(self) -> None:
        numbers = self._files.numbers()
        sizes = {number: self._files.open(number).size() for number in numbers}
        known = self._index.segments()
        if any(_shrunk(state, sizes.get(number)) for number, state in known.items()):
            log.warning("segments of %s are gone or cut short; its index is made again", self._files.directory)
            self.shrank = True
            self._index.clear()
            known = {}
        self._table.begin_anew(
            last=max([*numbers, *known], default=0), dropped=[number for number in known if number not in sizes]
        )
        # The names of segments created by a process that died before its sync are not durable yet.
        self._unflushed.directory = any(number not in known for number in numbers)
        sectors, answered = BadSectors(), False
        for number, size in sizes.items():
            state = known.get(number, SegmentState(SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES))
            self._table.add(number, state)
            if state.size < size:
                answered |= self._read_in(number, state, size, sectors)
            if number not in known and state.size == SEGMENT_HEADER_BYTES and not self._has_header(number):
                # The process or machine crashed after creating this segment, before its first block was durable.
                self._remove_headless(number)
                self._table.forget(number)
        if sectors.given_up and not answered:
            self._require_any_answer(sectors)
        if sectors.given_up:
            log.warning(
                "%d pages of %s could not be read and will be tried again later",
                sectors.given_up,
                self._files.directory,
            )
        self._settle_aside()

    def _read_in(self, number: int, state: SegmentState, size: int, sectors: BadSectors) -> bool:
        """Index the records after the end that the index knows of.

        A torn record at the end is left out of the segment's size, and thereby cut off later.

        Returns:
            Whether at least one page could be read.
        """
        file = self._files.open(number)
        file.drop_cache()
        # Their writer may have died before flushing these bytes, and the next commit relies on them.
        self._unflushed.note(number, file)
        pages, given_up = -(-(size - state.size) // PAGE_BYTES), sectors.given_up
        for found in scan_records(file, self._key, state.size, size, go_past=sectors.go_past):
            if found.unreadable:
                self._index.unread |= {Unread(number, found.offset, found.stop)}
            if isinstance(found, Gap) or not found.is_whole:
                if not found.unreadable:
                    continue  # a torn record, or no record
            elif found.intact:
                self._entries.enter_found(found.shard(), number, found.offset)
            else:
                self._entries.enter_bad(found, number)
            state.size = found.stop
            if self._durability.is_index_due or self._unflushed.is_full:
                self._durability.flush_replayed()
        return sectors.given_up - given_up < pages

    def _has_header(self, number: int) -> bool:
        try:
            header = self._files.header(number)
        except OSError as error:
            if fault_of(error) is not Fault.BROKEN:
                raise
            self._index.unread |= {Unread(number, 0, SEGMENT_HEADER_BYTES)}
            return True  # it may have one
        return header is not None and header.number == number

    def _remove_headless(self, number: int) -> None:
        try:
            self._files.remove(number)
        except OSError as error:
            if fault_of(error) is not Fault.READ_ONLY:
                raise
            self._condition.note_read_only(error)

    def _require_any_answer(self, sectors: BadSectors) -> None:
        """Check that any segment can be read at all: only then are the unreadable pages just bad sectors.

        Raises:
            OSError: no segment can be read.
        """
        block = memoryview(bytearray(SEGMENT_HEADER_BYTES))
        for number in self._table.numbers():
            try:
                file = self._files.open(number)
                file.drop_cache()
                file.read_into([block], 0)
                return
            except OSError as error:
                log.debug("segment %d of %s cannot be read: %s", number, self._files.directory, error)
        if sectors.last is not None:
            raise sectors.last

    def _settle_aside(self) -> None:
        """Forget a record set aside if its segment is gone, or if the replay found a good record of its shard."""
        for key, aside in self._index.all_aside().items():
            if self._index.get(key) is not None or aside.location.segment not in self._table:
                self._index.forget_aside(key)


def _shrunk(state: SegmentState, size: int | None) -> bool:
    """Whether a segment was cut short, is gone although it had live records, or has impossible counts."""
    if size is None:
        return state.live > SEGMENT_HEADER_BYTES
    return size < state.size or not SEGMENT_HEADER_BYTES <= state.live <= state.size

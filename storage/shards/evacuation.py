"""Moves every record that is still needed out of a segment, so that the segment can be removed."""

from __future__ import annotations

import logging
import threading

from storage.keys import ShardKey
from storage.limits import MIB
from storage.shards.condition import Condition
from storage.shards.durability import Durability
from storage.shards.index import Aside, SegmentState, ShardIndex
from storage.shards.moving import Mover
from storage.shards.port import CorruptShard, Shard
from storage.shards.quarantine import Quarantine
from storage.shards.reading import Reader
from storage.shards.record import HEADER_BYTES, SEGMENT_HEADER_BYTES
from storage.shards.record_reader import RecordReader
from storage.shards.scan import ScannedRecord, scan_records
from storage.shards.segment_files import SegmentFiles
from storage.shards.segment_writer import SegmentWriter

log = logging.getLogger(__name__)

_COMPACT_BATCH_BYTES = 8 * MIB
_ROOM_KEPT_BYTES = 4 * MIB  # free space left for the index and other users of the disk while a segment is moved


class Evacuation:
    """Moves a segment's records in batches.

    Only one segment is moved at a time, and it must not be the one that is appended to.

    Args:
        key: key for the tags of the volume's records.
        files: the segments' files.
        index: says which records are still needed.
        records: reads the records that are moved one by one.
        reader: walks all keys.
        quarantine: sets aside records that are no longer intact.
        mover: moves records.
        writer: shortens segments.
        durability: makes copies durable before the originals are cut off.
        condition: reports the free space.
        lock: the volume's; taken to change the segment's state.
    """

    def __init__(
        self,
        key: bytes,
        *,
        files: SegmentFiles,
        index: ShardIndex,
        records: RecordReader,
        reader: Reader,
        quarantine: Quarantine,
        mover: Mover,
        writer: SegmentWriter,
        durability: Durability,
        condition: Condition,
        lock: threading.Lock,
    ) -> None:
        self._key = key
        self._files = files
        self._index = index
        self._records = records
        self._reader = reader
        self._quarantine = quarantine
        self._mover = mover
        self._writer = writer
        self._durability = durability
        self._condition = condition
        self._lock = lock

    def move_all(self, number: int, state: SegmentState) -> int:
        """Move every needed record. The copies are not durable yet.

        The segment is searched even if its live count says that it is empty, as a wrong count must not lose data.

        Args:
            number: the segment's.
            state: the segment's; its size is lowered if pieces have to be cut off because the disk is nearly full.

        Returns:
            Bytes appended to other segments.

        Raises:
            OSError, StorageError: the segment cannot be moved now, or only a part of it was.
        """
        room = self._condition.space().free
        if room > state.live + _ROOM_KEPT_BYTES:
            moved = self._move_intact(number, state.size)
        else:
            moved = self._move_from_end(number, state, room // 4)
        if state.live > SEGMENT_HEADER_BYTES:
            moved += self._move_rest(number, set())
        return moved

    def _move_intact(self, number: int, size: int) -> int:
        file = self._files.file(number)
        if file is None:
            return 0
        moved, batch_bytes = 0, 0
        batch: list[tuple[int, Shard]] = []
        for found in scan_records(file, self._key, SEGMENT_HEADER_BYTES, size):
            if not isinstance(found, ScannedRecord) or not found.intact:
                continue
            if not self._is_at(found.header.key, number, found.offset):
                continue
            batch.append((found.offset, found.copied()))
            batch_bytes += HEADER_BYTES + len(found.payload)
            if batch_bytes >= _COMPACT_BATCH_BYTES:
                moved += self._mover.move(number, batch)
                batch, batch_bytes = [], 0
        return moved + self._mover.move(number, batch)

    def _move_from_end(self, number: int, state: SegmentState, batch_bytes_max: int) -> int:
        """Like :meth:`_move_intact` for a nearly full disk: cut off each piece before moving the next one."""
        file = self._files.file(number)
        if file is None:
            return 0
        keys = [
            (found.offset, found.header.key)
            for found in scan_records(file, self._key, SEGMENT_HEADER_BYTES, state.size)
            if isinstance(found, ScannedRecord) and found.intact and self._is_at(found.header.key, number, found.offset)
        ]
        moved = self._move_rest(number, {key for _, key in keys})
        while keys:
            batch: list[tuple[int, Shard]] = []
            batch_bytes = 0
            while keys and (not batch or batch_bytes < min(batch_bytes_max, _COMPACT_BATCH_BYTES)):
                offset, key = keys.pop()
                shard = self._read_to_move(key, number, offset)
                if shard is not None:
                    batch.append((offset, shard))
                    batch_bytes += HEADER_BYTES + len(shard.payload)
            moved += self._mover.move(number, batch)
            self._cut_end(number, state, offset)
        return moved

    def _read_to_move(self, key: ShardKey, number: int, offset: int) -> Shard | None:
        """Read a record; None if it has been moved or removed, or if it is now corrupt, in which case set it aside."""
        location = self._index.get(key)
        if location is None or not location.is_at(number, offset):
            return None
        try:
            return self._records.read(key, location)
        except CorruptShard:
            if self._quarantine.set_aside(key, location):
                self._mover.move_aside(key, Aside(location, wrong=False))
            return None

    def _is_at(self, key: ShardKey, number: int, offset: int) -> bool:
        here = self._index.get(key)
        return here is not None and here.is_at(number, offset)

    def _cut_end(self, number: int, state: SegmentState, size: int) -> None:
        """Cut off the end of a segment, which no entry points to any more."""
        with self._lock:
            state.size = size
        # Before the cut, the index on disk must have the smaller size and the new places of the moved records.
        self._durability.flush_index()
        self._writer.shorten(number, size)

    def _move_rest(self, number: int, intact: set[ShardKey]) -> int:
        """Set aside this segment's records that are not intact, and copy them unchanged.

        Such a record may be all that is left of its shard. Other bytes are not copied: they belong to no known shard.
        """
        for key in self._reader.keys():  # noqa: SIM118 - a method of the port, no mapping
            here = self._index.get(key)
            if here is not None and here.segment == number and key not in intact:
                self._quarantine.set_aside(key, here)
        left = [(key, aside) for key, aside in self._index.all_aside().items() if aside.location.segment == number]
        if left:
            log.warning(
                "segment %d of %s: copying %d damaged records unchanged", number, self._files.directory, len(left)
            )
        return sum(self._mover.move_aside(key, aside) for key, aside in left)

"""Moving single records from one segment to the end of another."""

from __future__ import annotations

import threading

from storage.keys import ShardKey
from storage.shards.appending import Appender
from storage.shards.condition import Condition
from storage.shards.entries import Entries
from storage.shards.index import Aside, ShardIndex
from storage.shards.port import Shard
from storage.shards.record import HEADER_BYTES, pack_headers
from storage.shards.segment_files import SegmentFiles


class Mover:
    """Appends copies of records and points the index at them. Takes the volume's lock.

    Args:
        key: key for the tags of the volume's records.
        files: the segment files.
        index: locations of records.
        entries: enters copies into the index.
        appender: writes copies.
        condition: shows whether the volume can still be used.
        lock: lock of the volume.
    """

    def __init__(
        self,
        key: bytes,
        *,
        files: SegmentFiles,
        index: ShardIndex,
        entries: Entries,
        appender: Appender,
        condition: Condition,
        lock: threading.Lock,
    ) -> None:
        self._key = key
        self._files = files
        self._index = index
        self._entries = entries
        self._appender = appender
        self._condition = condition
        self._lock = lock

    def move(self, number: int, batch: list[tuple[int, Shard]]) -> int:
        """Append copies and point the index at them, unless a record was removed or replaced meanwhile.

        Args:
            number: segment of the records.
            batch: offset and shard of each record.

        Returns:
            Bytes appended.
        """
        headers = pack_headers([shard for _, shard in batch], self._key)
        moved = 0
        with self._lock:
            self._condition.check_usable()
            for (offset, shard), header in zip(batch, headers, strict=True):
                here = self._index.get(shard.key)
                if here is None or not here.is_at(number, offset):
                    continue
                if self._index.recent(shard.key) is None:
                    self._entries.release(here)
                self._appender.append_copy(shard, header)
                moved += HEADER_BYTES + len(shard.payload)
        return moved

    def move_aside(self, key: ShardKey, aside: Aside) -> int:
        """Copy the raw bytes of a record that is set aside; return the number of bytes appended."""
        file = self._files.file(aside.location.segment)
        length = HEADER_BYTES + aside.location.payload_length
        raw = memoryview(bytearray(length))
        is_there = file is not None and self._files.fill(file, [raw], length, aside.location.offset)
        with self._lock:
            self._condition.check_usable()
            if self._index.aside(key) != aside:
                return 0
            if not is_there:  # the file ends before the record does: there is nothing to keep
                self._entries.drop_aside(key, aside)
                return 0
            self._entries.move_aside(key, aside, *self._appender.append_raw(raw))
        return length

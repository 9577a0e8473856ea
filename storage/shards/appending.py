"""Appending records to a volume."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from storage.errors import StoreFull
from storage.keys import ShardKey
from storage.limits import BytesLike
from storage.shards.condition import Condition
from storage.shards.entries import Entries
from storage.shards.port import Shard
from storage.shards.record import HEADER_BYTES, SEGMENT_HEADER_BYTES, pack_headers
from storage.shards.segment_table import SegmentTable
from storage.shards.segment_writer import SegmentWriter
from storage.shards.write_access import WriteAccess

Absent = Callable[[Sequence[ShardKey]], Sequence[int]]
"""Returns the positions of the shards that a volume lacks."""


class Appender:
    """Writes records to the active segment and indexes them.

    Args:
        key: key for the tags of the volume's records.
        writer: has the active segment.
        table: has the number of the active segment.
        entries: enters records into the index.
        access: shows whether the disk takes writes.
        condition: state of the volume, including its space.
        lock: lock of the volume.
    """

    def __init__(
        self,
        key: bytes,
        *,
        writer: SegmentWriter,
        table: SegmentTable,
        entries: Entries,
        access: WriteAccess,
        condition: Condition,
        lock: threading.Lock,
    ) -> None:
        self._key = key
        self._writer = writer
        self._table = table
        self._entries = entries
        self._access = access
        self._condition = condition
        self._lock = lock

    def append(self, shards: Sequence[Shard], *, urgent: bool, absent: Absent | None = None) -> Sequence[int]:
        """See :meth:`ShardStore.append`. Takes the volume's lock.

        Args:
            shards: the shards.
            urgent: whether they may take the space that is kept free.
            absent: says which ones are to be appended, once nobody else appends; None: all.

        Returns:
            The positions of those that were appended.
        """
        at: Sequence[int] = range(len(shards))
        headers = pack_headers(shards, self._key)
        room = self._condition.room
        with self._lock:
            self._condition.check_usable()
            self._access.require()
            if absent is not None:
                at = absent([shard.key for shard in shards])
                shards, headers = [shards[each] for each in at], [headers[each] for each in at]
            start = 0
            try:
                while start < len(shards):
                    start = self._append_run(shards, headers, start, urgent)
            except StoreFull as error:
                room.note_refused(error)
                raise
            self._condition.refusal = ""
            if room.lacking and not urgent:
                room.note_taken()
        return at

    def append_copy(self, shard: Shard, header: bytes) -> None:
        """Append a copy of a shard that will be removed from its former location. The caller holds the volume's lock.

        Args:
            shard: the shard.
            header: header of its record, see :func:`pack_headers`.

        Raises:
            StorageError: see :meth:`ShardStore.append`.
        """
        self._append_run([shard], [header], 0, urgent=True)

    def append_raw(self, raw: BytesLike) -> tuple[int, int]:
        """Append raw bytes without an entry in the index. The caller holds the volume's lock.

        Returns:
            The segment and the offset of the bytes.

        Raises:
            StorageError: see :meth:`ShardStore.append`.
        """
        state, length = self._writer.active, len(raw)
        if state is None or state.size + length > self._writer.segment_bytes_max:
            self._writer.begin()
        offset = self._writer.append([raw], length, urgent=True)
        return self._table.last, offset

    def _append_run(self, shards: Sequence[Shard], headers: list[bytes], start: int, urgent: bool) -> int:
        """Append as many shards as fit into the active segment, at least one; return the index of the next one."""
        state, bytes_max = self._writer.active, self._writer.segment_bytes_max
        if state is None or (
            state.size > SEGMENT_HEADER_BYTES and state.size + HEADER_BYTES + len(shards[start].payload) > bytes_max
        ):
            state = self._writer.begin()
        size = state.size
        buffers: list[BytesLike] = []
        offset, stop = size, start
        for index in range(start, len(shards)):
            length = HEADER_BYTES + len(shards[index].payload)
            if index > start and offset + length > bytes_max:
                break
            buffers.append(headers[index])
            buffers.append(shards[index].payload)
            offset += length
            stop = index + 1
        if not urgent:
            self._condition.room.require(offset - size)
        self._writer.append(buffers, offset - size, urgent=urgent)
        self._entries.enter(shards[start:stop], self._table.last, size)
        return stop

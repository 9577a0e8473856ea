"""Compaction: freeing the space of records that are not valid any more."""

from __future__ import annotations

import logging
import threading

from storage.errors import StoreFull
from storage.shards.condition import Condition
from storage.shards.durability import Durability
from storage.shards.entries import Entries
from storage.shards.evacuation import Evacuation
from storage.shards.index import SegmentState, ShardIndex
from storage.shards.port import VolumeReadOnly, VolumeUnavailable
from storage.shards.record import SEGMENT_HEADER_BYTES
from storage.shards.segment_files import SegmentFiles
from storage.shards.segment_table import SegmentTable
from storage.shards.segment_writer import SegmentWriter
from storage.shards.unread import UnreadParts
from storage.shards.write_access import WriteAccess

log = logging.getLogger(__name__)


class Compaction:
    """Chooses segments with few live bytes, moves their records away, and removes them. One compaction at a time.

    Args:
        files: the segment files.
        table: states of segments.
        index: shows which segments could not be read completely.
        entries: corrects counts of live bytes.
        evacuation: moves records away.
        unread: parts that could not be read; they are read again first.
        durability: makes copies durable before their originals are removed.
        writer: has the active segment; removes other segments.
        access: shows whether the disk takes writes.
        condition: state of the volume.
        lock: lock of the volume.
    """

    def __init__(
        self,
        *,
        files: SegmentFiles,
        table: SegmentTable,
        index: ShardIndex,
        entries: Entries,
        evacuation: Evacuation,
        unread: UnreadParts,
        durability: Durability,
        writer: SegmentWriter,
        access: WriteAccess,
        condition: Condition,
        lock: threading.Lock,
    ) -> None:
        self._files = files
        self._table = table
        self._index = index
        self._entries = entries
        self._evacuation = evacuation
        self._unread = unread
        self._durability = durability
        self._writer = writer
        self._access = access
        self._condition = condition
        self._lock = lock
        self._compact_lock = threading.Lock()

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        """See :meth:`ShardStore.compact`."""
        with self._compact_lock:
            with self._lock:
                self._condition.check_usable()
                self._access.require()
            self._unread.look_again()
            self._recount()
            compacted = freed = 0
            for number in self._choose(live_ratio_max):
                try:
                    freed += self._compact_segment(number)
                except StoreFull:
                    if not compacted:
                        raise
                    break
                except (OSError, VolumeUnavailable) as error:
                    # It may contain data that can be read at another time, or with another controller.
                    log.warning(
                        "segment %d of %s cannot be compacted now and stays: %s", number, self._files.directory, error
                    )
                    if isinstance(error, VolumeReadOnly):
                        break
                    continue
                compacted += 1
            if freed:
                with self._lock:
                    self._condition.room.note_freed()
            return compacted, freed

    def _recount(self) -> None:
        """Write the index to disk, and correct counts of live bytes that are too high."""
        with self._lock:
            sizes = self._entries.begin_count()
        self._durability.flush_index()
        if sizes is None:
            return
        counted = self._index.live_bytes()
        with self._lock:
            self._entries.correct(sizes, counted)

    def _choose(self, live_ratio_max: float) -> list[int]:
        """Return the segments worth rewriting, emptiest first, so that they free space for the others."""
        with self._lock:
            active = self._writer.active
            if active is not None and _is_worth_it(active, live_ratio_max):
                self._writer.seal()  # the next append starts a new segment
            chosen = [
                (state.live / state.size, number)
                for number, state in self._table.items()
                if _is_worth_it(state, live_ratio_max)
                and not self._writer.is_active(number)
                and not self._index.is_unread(number)
            ]
        return [number for _, number in sorted(chosen)]

    def _compact_segment(self, number: int) -> int:
        """Move live records away durably, then remove the segment; return the bytes freed."""
        state = self._table[number]
        size = state.size
        moved = self._evacuation.move_all(number, state)
        self._durability.flush_index()
        with self._lock:
            self._access.require()  # the index on disk must have the new locations
            self._writer.drop(number)
        self._writer.remove(number)
        return size - moved


def _is_worth_it(state: SegmentState, live_ratio_max: float) -> bool:
    """Whether a segment has records, but so few live ones that rewriting it is worthwhile."""
    if state.size <= SEGMENT_HEADER_BYTES:
        return False
    return state.live <= SEGMENT_HEADER_BYTES or state.live / state.size <= live_ratio_max

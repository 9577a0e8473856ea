"""Parts of segments that could not be read when they were indexed, and are read again later."""

from __future__ import annotations

import logging
import threading

from storage.shards.entries import Entries
from storage.shards.filesystem import VolumeFile
from storage.shards.index import ShardIndex, Unread
from storage.shards.port import VolumeUnavailable
from storage.shards.scan import Gap, scan_records
from storage.shards.sectors import BadSectors
from storage.shards.segment_files import SegmentFiles
from storage.shards.segment_table import SegmentTable

log = logging.getLogger(__name__)


class UnreadParts:
    """Finds records in the parts noted as unread, once the disk can read them.

    Args:
        key: key for the tags of the volume's records.
        files: the segment files.
        table: the existing segments.
        index: has the list of unread parts.
        entries: enters records into the index.
        lock: lock of the volume.
    """

    def __init__(
        self,
        key: bytes,
        *,
        files: SegmentFiles,
        table: SegmentTable,
        index: ShardIndex,
        entries: Entries,
        lock: threading.Lock,
    ) -> None:
        self._key = key
        self._files = files
        self._table = table
        self._index = index
        self._entries = entries
        self._lock = lock

    def look_again(self) -> None:
        """Read all unread parts again, and index the records in them. Parts that still cannot be read stay noted.

        Takes the volume's lock for each record.
        """
        for unread in self._index.unread:
            try:
                file = self._files.file(unread.segment) if unread.segment in self._table else None
                if file is not None:
                    self._files.drop_cache(file)
                left: set[Unread] = set() if file is None else self._enter(file, unread)
            except (OSError, VolumeUnavailable) as error:
                log.info(
                    "a part of segment %d of %s still cannot be read: %s", unread.segment, self._files.directory, error
                )
                continue
            with self._lock:
                self._index.unread = self._index.unread - {unread} | left

    def _enter(self, file: VolumeFile, unread: Unread) -> set[Unread]:
        """Index the records in a part; return the parts of it that still cannot be read."""
        number = unread.segment
        left: set[Unread] = set()
        for found in scan_records(file, self._key, unread.start, unread.stop, go_past=BadSectors().go_past):
            if found.unreadable:
                left.add(Unread(number, found.offset, found.stop))
            if isinstance(found, Gap) or not found.is_whole:
                continue
            with self._lock:
                aside = self._index.aside(found.header.key)
                if not found.intact:
                    self._entries.enter_bad(found, number)
                elif self._index.get(found.header.key) is None and not (aside and aside.wrong):
                    self._entries.enter_found(found.shard(), number, found.offset)
        return left

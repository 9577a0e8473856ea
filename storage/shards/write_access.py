"""Retries writing, at intervals, to a disk that took no writes or had no space."""

from __future__ import annotations

import logging
import threading

from storage.errors import StorageError, StoreFull
from storage.shards.condition import Condition
from storage.shards.filesystem import FileSystem
from storage.shards.identity import IDENTITY_FILE
from storage.shards.index import ShardIndex
from storage.shards.port import VolumeReadOnly
from storage.shards.segment_files import SegmentFiles
from storage.shards.segment_table import SegmentTable
from storage.shards.segment_writer import SegmentWriter
from storage.system.faults import Fault, fault_of

log = logging.getLogger(__name__)


class WriteAccess:
    """Checks whether a volume takes writes.

    Args:
        filesystem: access to the disk.
        files: the segment files.
        table: the existing segments.
        writer: begins or resumes the active segment.
        index: the index, which must also be writable.
        condition: state of the volume.
        lock: lock of the volume.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        *,
        files: SegmentFiles,
        table: SegmentTable,
        writer: SegmentWriter,
        index: ShardIndex,
        condition: Condition,
        lock: threading.Lock,
    ) -> None:
        self._filesystem = filesystem
        self._files = files
        self._table = table
        self._writer = writer
        self._index = index
        self._condition = condition
        self._lock = lock

    def can_be_written(self) -> bool:
        """Whether the disk takes writes and is not known to be full. If it did not or was, retries at intervals.

        Takes the volume's lock in that case.
        """
        room = self._condition.room
        if not self._condition.read_only and not room.lacking:
            return True
        try:
            with self._lock:
                self.require()
                self._look_for_room()
                return not room.lacking or not room.is_used_up()
        except StorageError as error:
            log.debug("volume %s cannot be written: %s", self._files.directory, error)
            return False

    def require(self) -> None:
        """Check that the disk takes writes. If it did not, try again when an attempt is due.

        The caller holds the volume's lock.

        Raises:
            VolumeReadOnly: the disk takes no writes.
            StorageError: this cannot be found out now.
        """
        condition = self._condition
        if not condition.read_only:
            return
        if not condition.retry.due():
            raise VolumeReadOnly(condition.read_only)
        reason, condition.read_only = condition.read_only, ""
        try:
            if self._writer.active is None:
                self._writer.resume()
            if self._writer.active is None:
                self._probe()
            if not condition.read_only and not self._index.probe():
                condition.retry.succeeded()
                log.info("volume %s can be written again", self._files.directory)
                return
        except OSError as error:
            raise self._writer.refused(error) from error
        condition.read_only = condition.read_only or reason
        condition.retry.failed()
        raise VolumeReadOnly(condition.read_only)

    def _probe(self) -> None:
        """Check whether the disk still refuses writes, if no segment is open for writing."""
        last = max(self._table.numbers(), default=None)
        path = self._files.directory / IDENTITY_FILE if last is None else self._files.path_of(last)
        try:
            self._filesystem.open(path, writable=True)
        except OSError as error:
            if fault_of(error) is not Fault.READ_ONLY:
                raise
            self._condition.note_read_only(error)

    def _look_for_room(self) -> None:
        """Try at intervals whether there is space again, if the reported free space is no indication."""
        room = self._condition.room
        if not room.may_be_tried:
            return
        try:
            self._writer.probe_space()
        except StoreFull as error:
            room.note_refused(error)
        else:
            room.note_freed()

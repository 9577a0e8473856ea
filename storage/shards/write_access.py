"""Trying again, from time to time, to write to a disk that took no writes or had no space."""

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
    """Tells whether a volume takes writes.

    Args:
        filesystem: the door to the disk.
        files: the segments' files.
        table: which segments there are.
        writer: begins or resumes the active segment.
        index: says whether entries reach the disk.
        condition: what is known of the disk.
        lock: the volume's.
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
        """Whether the disk takes writes, tried again from time to time if it did not, and is not known to be full.

        Takes the volume's lock if it did not, or was full.
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
        """Let only volumes pass whose disk takes writes, after another attempt if it did not and it is time for one.

        Called with the volume's lock held.

        Raises:
            VolumeReadOnly: it does not.
            StorageError: that cannot be told now.
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
        """Have the disk refuse writes if it still does, where no segment that is open for them could tell."""
        last = max(self._table.numbers(), default=None)
        path = self._files.directory / IDENTITY_FILE if last is None else self._files.path_of(last)
        try:
            self._filesystem.open(path, writable=True)
        except OSError as error:
            if fault_of(error) is not Fault.READ_ONLY:
                raise
            self._condition.note_read_only(error)

    def _look_for_room(self) -> None:
        """Try, from time to time, whether there is space again where the space that is free does not tell."""
        room = self._condition.room
        if not room.may_be_tried:
            return
        try:
            self._writer.probe_space()
        except StoreFull as error:
            room.note_refused(error)
        else:
            room.note_freed()

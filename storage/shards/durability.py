"""Makes a volume's records durable: flushes its segments, then its index."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from storage.errors import StorageError, StoreFull
from storage.shards.condition import Condition
from storage.shards.filesystem import VolumeFile
from storage.shards.index import ShardIndex
from storage.shards.port import VolumeUnavailable
from storage.shards.segment_files import SegmentFiles
from storage.shards.segment_table import SegmentTable
from storage.shards.segment_writer import SegmentWriter
from storage.shards.unflushed import Unflushed
from storage.shards.write_access import WriteAccess
from storage.system.faults import never_flushed

log = logging.getLogger(__name__)

PENDING_MAX = 8192  # about 2 MB of memory per volume, and one second to index these records again after a crash


class PendingSync(NamedTuple):
    """What a sync has to flush: segment files, whether also the directory, and the index checkpoint to write after."""

    files: dict[int, VolumeFile]
    directory: bool
    checkpoint: dict[int, tuple[int, int]] | None


class Durability:
    """Syncs, one at a time. The index on disk never points to a record that is not durable.

    The beginning of a sync freezes the waiting entries and the segments' sizes. They are written to disk after
    the segments have been flushed.

    Args:
        files: the segments' files.
        table: the segments' states.
        unflushed: the files that were written to and not flushed yet.
        index: where each record is.
        writer: says whether the active segment's file was removed by somebody else.
        access: checks that the volume can be written.
        condition: is told of failures.
        lock: the volume's.
    """

    def __init__(
        self,
        *,
        files: SegmentFiles,
        table: SegmentTable,
        unflushed: Unflushed,
        index: ShardIndex,
        writer: SegmentWriter,
        access: WriteAccess,
        condition: Condition,
        lock: threading.Lock,
    ) -> None:
        self._files = files
        self._table = table
        self._unflushed = unflushed
        self._index = index
        self._writer = writer
        self._access = access
        self._condition = condition
        self._lock = lock
        self._sync_lock = threading.Lock()

    @property
    def is_index_due(self) -> bool:
        """Whether enough entries wait in memory for the index to be flushed."""
        return self._index.pending >= PENDING_MAX

    def sync(self, *, whole_index: bool = False) -> None:
        """Make everything durable that was written before this call.

        Args:
            whole_index: also write all waiting entries to disk. Otherwise this is done only when many are waiting.
        """
        pending = self.begin(whole_index=whole_index)
        if pending is None:
            return
        try:
            error = self.flush(pending)
        except BaseException:  # also KeyboardInterrupt: nothing counts as flushed
            self.cancel(pending)
            raise
        self.end(pending, error)

    def flush_index(self) -> None:
        """Sync, and write all waiting entries to disk; does nothing on a read-only disk."""
        if not self._condition.read_only:
            self.sync(whole_index=True)

    # -- the halves of a sync --------------------------------------------------------------------

    def begin(self, *, whole_index: bool = False) -> PendingSync | None:
        """See :meth:`LocalVolume.begin_sync`."""
        self._sync_lock.acquire()
        try:
            with self._lock:
                self._condition.check_usable()
                if self._unflushed:
                    self._access.require()
                frozen = self._index.changed if whole_index else self.is_index_due
                if not self._unflushed and not frozen:
                    self._sync_lock.release()
                    return None
                frozen = frozen and self._index.freeze()
                checkpoint = self._table.checkpoint() if frozen else None
                return PendingSync(*self._unflushed.take(), checkpoint)
        except BaseException:
            self._sync_lock.release()
            raise

    def end(self, pending: PendingSync, error: Exception | None = None) -> None:
        """See :meth:`LocalVolume.end_sync`."""
        if isinstance(error, OSError) and never_flushed(error):
            self.cancel(pending)
            raise self._condition.refused(error) from error
        try:
            if error is None and self._writer.seems_removed():
                error = FileNotFoundError(f"{self._files.directory} was removed while in use")
            if error is not None:
                # After a failed flush, writes since the last good one count only after they were read back
                # from the disk. Reopening the volume does that.
                raise self._condition.fail(error) from error
            if pending.checkpoint is not None:
                self._write_index(pending.checkpoint)
        finally:
            self._sync_lock.release()

    def cancel(self, pending: PendingSync) -> None:
        """See :meth:`LocalVolume.cancel_sync`."""
        with self._lock:
            self._unflushed.give_back(pending.files, pending.directory)
            if pending.checkpoint is not None:
                self._index.thaw()
        self._sync_lock.release()

    def flush(self, pending: PendingSync, *, files: bool = True) -> Exception | None:
        """See :meth:`LocalVolume.flush`."""
        try:
            for file in pending.files.values() if files else ():
                file.datasync()
            if pending.directory:
                self._files.sync_directory()
        except (OSError, StoreFull) as error:
            return error
        return None

    # -- while the volume is opened --------------------------------------------------------------

    def flush_replayed(self) -> None:
        """Flush all segments and then the index, in the middle of a replay; does nothing on a read-only disk."""
        if self._condition.read_only or not self._index.writable:
            return  # the entries stay in memory
        for file in self._unflushed.files.values():
            file.datasync()
        self._files.sync_directory()
        self._unflushed.clear()
        if self._index.freeze():
            self._write_index(self._table.checkpoint())

    # -- the index -------------------------------------------------------------------------------

    def _write_index(self, checkpoint: dict[int, tuple[int, int]]) -> None:
        """Write the frozen entries; the records that they point to have been flushed."""
        dropped = self._table.take_dropped()
        try:
            self._index.flush(checkpoint, dropped)
        except (StoreFull, VolumeUnavailable) as error:
            # The records themselves are durable. Their entries stay in memory; after a crash they are made
            # again from the segments.
            log.warning("the index of %s stays in memory for now: %s", self._files.directory, error)
            self._index.thaw()
            self._table.give_back_dropped(dropped)
        except StorageError:
            self._index.thaw()
            self._table.give_back_dropped(dropped)
            raise

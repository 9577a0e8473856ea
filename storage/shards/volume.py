"""A volume: a directory of append-only segment files on one disk, with an index that can be made again from them.

:class:`LocalVolume` connects the parts of a volume, each of which has a module of its own.

Locks, in the order in which they are taken. A thread that holds one takes only those below it:

1. The lock of :class:`~storage.shards.compaction.Compaction`: one compaction at a time.
2. The lock of :class:`~storage.shards.durability.Durability`: one sync at a time, from begin to end. Flushing files
   and writing the index to disk needs only this lock, so that appends can go on meanwhile.
3. The volume's lock, which is created here and passed to the parts. It guards everything that appending a record
   changes: the active segment, the table of segments, the entries of the index, the list of unflushed files, and the
   state of the free space. Callers of ``Entries``, ``SegmentTable``, ``Unflushed``, ``Room``, ``SegmentWriter``,
   ``WriteAccess.require``, ``Appender.append_copy`` and ``Appender.append_raw`` must hold it (their docstrings name
   the exceptions). All other parts take it themselves to change any of these.
4. The lock of :class:`~storage.shards.segment_files.SegmentFiles`: guards the open files while one is opened.

Readers take only the last lock, unless they restore a record that was set aside. They look up single entries of the
index and of the table. An entry exists only after its bytes were written and its segment's size was raised. If a
record is not where the index said, it is looked up again, as a compaction may have moved it. The condition has no
lock: any thread may note an error. A volume that is being opened has no other users, and is replayed without locks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from storage.clocks import monotonic_s, wall_ms
from storage.errors import StorageError
from storage.keys import Kind, ShardKey
from storage.limits import SEGMENT_BYTES_MAX
from storage.shards.appending import Appender
from storage.shards.compaction import Compaction
from storage.shards.condition import Condition
from storage.shards.durability import Durability, PendingSync
from storage.shards.entries import Entries
from storage.shards.evacuation import Evacuation
from storage.shards.filesystem import FileSystem, LocalFileSystem, VolumeFile
from storage.shards.identity import IDENTITY_FILE, VolumeIdentity, lacks_identity, write_identity
from storage.shards.index import Aside, ShardIndex
from storage.shards.moving import Mover
from storage.shards.newest import NewestRecord
from storage.shards.port import Location, Shard, Verdict, Verification, VolumeUnavailable, VolumeUsage
from storage.shards.quarantine import Quarantine
from storage.shards.reading import Reader
from storage.shards.record_reader import RecordReader
from storage.shards.record_walk import RecordWalk
from storage.shards.replay import Replay
from storage.shards.scrub import Scrub
from storage.shards.segment_files import SegmentFiles, open_files_max
from storage.shards.segment_table import SegmentTable
from storage.shards.segment_writer import SegmentWriter
from storage.shards.unflushed import Unflushed
from storage.shards.unread import UnreadParts
from storage.shards.verification import LocalVerification
from storage.shards.write_access import WriteAccess
from storage.system.faults import Fault, fault_of

log = logging.getLogger(__name__)

_DRAIN_S = 5.0


class LocalVolume:
    """A :class:`~storage.shards.port.ShardStore` in a directory. Thread-safe; one process at a time.

    On a read-only disk the volume can be opened and read; from time to time, writes are tried again.

    Args:
        path: the directory, which holds the volume with this identity or none.
        identity: from :func:`~storage.shards.identity.read_identity`, or a new one.
        filesystem: access to the disk.
        segment_bytes_max: a segment is ended when the next record would make it larger than this.
        clock_s: returns monotonic seconds.
        now_ms: returns milliseconds since 1970.

    Raises:
        FormatError: the directory cannot be read as a volume.
        StoreFull: no space for a new index.
        VolumeUnavailable: it cannot be opened now.
        VolumeFailed: the disk failed while it was being opened.

    Attributes:
        condition: whether it can be read and written now.
        files: the segments' files.
        shrank: whether segments that the index knew of were gone or cut short when the volume was opened.
    """

    def __init__(
        self,
        path: Path,
        identity: VolumeIdentity,
        *,
        filesystem: FileSystem | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        clock_s: Callable[[], float] = monotonic_s,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self.path = path
        self.identity = identity
        self._filesystem = filesystem or LocalFileSystem()
        self._key = bytes.fromhex(identity.key)
        self._lock = threading.Lock()
        self.condition = Condition(path, self._filesystem, clock_s)
        self.files = SegmentFiles(path, self._filesystem, self.condition)
        self._unflushed = Unflushed(open_files_max())
        self._table = SegmentTable()
        try:
            self._identify()
            self._index = ShardIndex(path / "index", self._filesystem)
        except OSError as error:
            raise VolumeUnavailable(f"volume {path} cannot be opened now: {error}") from error
        self._entries = Entries(self._index, self._table)
        self._writer = SegmentWriter(
            identity,
            segment_bytes_max,
            files=self.files,
            table=self._table,
            unflushed=self._unflushed,
            index=self._index,
            condition=self.condition,
            lock=self._lock,
            now_ms=now_ms,
        )
        self._access = WriteAccess(
            self._filesystem,
            files=self.files,
            table=self._table,
            writer=self._writer,
            index=self._index,
            condition=self.condition,
            lock=self._lock,
        )
        self._appender = Appender(
            self._key,
            writer=self._writer,
            table=self._table,
            entries=self._entries,
            access=self._access,
            condition=self.condition,
            lock=self._lock,
        )
        self._durability = Durability(
            files=self.files,
            table=self._table,
            unflushed=self._unflushed,
            index=self._index,
            writer=self._writer,
            access=self._access,
            condition=self.condition,
            lock=self._lock,
        )
        self._unread = UnreadParts(
            self._key,
            files=self.files,
            table=self._table,
            index=self._index,
            entries=self._entries,
            lock=self._lock,
        )
        self._records = RecordReader(self._key, self.files)
        self._quarantine = Quarantine(
            path, index=self._index, entries=self._entries, records=self._records, lock=self._lock
        )
        self._reader = Reader(
            index=self._index,
            files=self.files,
            records=self._records,
            quarantine=self._quarantine,
            durability=self._durability,
        )
        self._walk = RecordWalk(self._key, files=self.files, table=self._table, index=self._index, reader=self._reader)
        self._newest = NewestRecord(
            index=self._index, table=self._table, reader=self._reader, condition=self.condition, lock=self._lock
        )
        self._scrub = self._new_scrub()
        self._compaction = self._new_compaction()
        self.shrank = self._open_segments()

    def _identify(self) -> None:
        """Check that the directory holds this volume or none; in the second case begin it."""
        if not lacks_identity(self.path, self.identity, self._filesystem):
            return
        try:
            write_identity(self.path, self.identity, self._filesystem)
        except OSError as error:
            if fault_of(error) is not Fault.READ_ONLY:
                raise
            self.condition.note_read_only(error)  # the segments contain the identity, too

    def _new_scrub(self) -> Scrub:
        return Scrub(
            self._key,
            files=self.files,
            table=self._table,
            index=self._index,
            reader=self._reader,
            quarantine=self._quarantine,
            unread=self._unread,
            durability=self._durability,
        )

    def _new_compaction(self) -> Compaction:
        mover = Mover(
            self._key,
            files=self.files,
            index=self._index,
            entries=self._entries,
            appender=self._appender,
            condition=self.condition,
            lock=self._lock,
        )
        evacuation = Evacuation(
            self._key,
            files=self.files,
            index=self._index,
            records=self._records,
            reader=self._reader,
            quarantine=self._quarantine,
            mover=mover,
            writer=self._writer,
            durability=self._durability,
            condition=self.condition,
            lock=self._lock,
        )
        return Compaction(
            files=self.files,
            table=self._table,
            index=self._index,
            entries=self._entries,
            evacuation=evacuation,
            unread=self._unread,
            durability=self._durability,
            writer=self._writer,
            access=self._access,
            condition=self.condition,
            lock=self._lock,
        )

    def _open_segments(self) -> bool:
        """Complete the index and resume the last segment; return whether segments were gone or cut short."""
        replay = Replay(
            self._key,
            files=self.files,
            table=self._table,
            index=self._index,
            entries=self._entries,
            unflushed=self._unflushed,
            durability=self._durability,
            condition=self.condition,
        )
        try:
            replay.run()
            self._unread.look_again()
            self._writer.resume()
        except OSError as error:
            self._index.close()
            raise VolumeUnavailable(f"volume {self.path} cannot be opened now: {error}") from error
        except BaseException:
            self._index.close()
            raise
        return replay.shrank

    @property
    def state(self) -> tuple[str, str]:
        """``"ok"``, ``"read-only"``, ``"full"``, ``"refusing"`` or ``"failed"``, with the reason."""
        return self.condition.summary()

    def can_be_written(self) -> bool:
        """Whether the disk can be written and is not known to be full; tries again from time to time."""
        return self._access.can_be_written()

    @property
    def wanted(self) -> int:
        """Number of bytes for which there was no space in the last write; 0 if there was, or is again."""
        return self.condition.room.wanted

    def has_room(self, length: int) -> bool:
        """Whether the file system has space for this many bytes; True if this cannot be found out now."""
        try:
            return self.condition.room.has(length)
        except StorageError as error:
            log.debug("the free space of volume %s cannot be read: %s", self.path, error)
            return True

    # -- writing ---------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """See :meth:`ShardStore.append`."""
        self._appender.append(shards, urgent=urgent)

    def append_absent(self, shards: Sequence[Shard]) -> Sequence[int]:
        """Like :meth:`append`, but only what is not here, whoever appends meanwhile; return the positions of that."""
        return self._appender.append(shards, urgent=False, absent=self._index.missing)

    # -- durability ------------------------------------------------------------------------------

    def sync(self) -> None:
        """See :meth:`ShardStore.sync`."""
        self._durability.sync()

    def begin_sync(self, *, whole_index: bool = False) -> PendingSync | None:
        """Begin a sync, for callers that flush several volumes at once, and return what must be flushed.

        Returns None if there is nothing to do. Otherwise this volume's other syncs wait until :meth:`end_sync` or
        :meth:`cancel_sync`.
        """
        return self._durability.begin(whole_index=whole_index)

    def end_sync(self, pending: PendingSync, error: Exception | None = None) -> None:
        """End a sync after everything returned by :meth:`begin_sync` was flushed, or flushing failed with ``error``.

        Raises:
            VolumeFailed: flushing failed, or the directory is gone.
            VolumeUnavailable: flushing could not begin; the next sync flushes everything.
        """
        self._durability.end(pending, error)

    def cancel_sync(self, pending: PendingSync) -> None:
        """End a sync without having flushed everything; the next sync does."""
        self._durability.cancel(pending)

    def flush(self, pending: PendingSync, *, files: bool = True) -> Exception | None:
        """Flush what :meth:`begin_sync` returned; returns the error to pass to :meth:`end_sync`.

        Args:
            pending: what to flush.
            files: flush the files as well as the directory; False if the files have been flushed already.
        """
        return self._durability.flush(pending, files=files)

    def flush_index(self) -> None:
        """Sync, and write all waiting entries to disk; does nothing on a read-only disk."""
        self._durability.flush_index()

    # -- reading ---------------------------------------------------------------------------------

    def locate(self, key: ShardKey) -> Location | None:
        """See :meth:`ShardStore.locate`."""
        return self._index.get(key)

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        """See :meth:`ShardStore.locate_all`."""
        return [self._index.get(key) for key in keys]

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        """See :meth:`ShardStore.missing`."""
        return self._index.missing(keys)

    def read_into(self, key: ShardKey, buffers: Sequence[memoryview], length: int) -> bool:
        """See :meth:`ShardStore.read_into`."""
        return self._reader.read_into(key, buffers, length)

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> Sequence[memoryview | None]:
        """See :meth:`ShardStore.fetch_all`."""
        return self._reader.fetch_all(wanted)

    def begin_fetch(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Sequence[bool] | StorageError], None],
    ) -> Callable[[], None]:
        """See :meth:`ShardStore.begin_fetch`."""
        return self._reader.begin_fetch(wanted, into, done)

    def payload_file(self, key: ShardKey, length: int) -> tuple[VolumeFile, int] | None:
        """Return the open file that has a payload, and where it begins; None if it cannot be read this way."""
        return self._reader.payload_file(key, length)

    def read(self, key: ShardKey) -> Shard | None:
        """See :meth:`ShardStore.read`."""
        return self._reader.read(key)

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        """See :meth:`ShardStore.keys`."""
        return self._reader.keys(start, stop)

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        """See :meth:`ShardStore.records`."""
        return self._walk.records(kinds)

    def newest(self) -> Shard | None:
        """See :meth:`ShardStore.newest`."""
        return self._newest.read()

    # -- what is bad -----------------------------------------------------------------------------

    def segment_sizes(self) -> dict[int, int]:
        """Return the size of each segment by its number, in order."""
        return self._table.sizes()

    def verify(self, progress: Callable[[int], None], segments: Iterable[int] | None = None) -> Verification:
        """See :meth:`ShardStore.verify`. With ``segments``, read only these; all other records count as good."""
        return LocalVerification(
            self._scrub.damaged_ranges(progress, segments),
            index=self._index,
            table=self._table,
            records=self._records,
            reader=self._reader,
            quarantine=self._quarantine,
        )

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """See :meth:`ShardStore.check`."""
        return self._scrub.check(keys)

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """See :meth:`ShardStore.discard`."""
        return self._quarantine.discard(key, location, wrong=wrong)

    def all_aside(self) -> dict[ShardKey, Aside]:
        """Return all records set aside, by shard key."""
        return self._index.all_aside()

    # -- removal and compaction ------------------------------------------------------------------

    def remove(self, keys: Iterable[ShardKey]) -> int:
        """See :meth:`ShardStore.remove`."""
        removed = 0
        for key in keys:
            with self._lock:
                removed += self._entries.remove(key)
            if self._durability.is_index_due:
                self._durability.flush_index()
        return removed

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        """See :meth:`ShardStore.compact`."""
        return self._compaction.compact(live_ratio_max)

    # -- the rest --------------------------------------------------------------------------------

    def usage(self) -> VolumeUsage:
        """See :meth:`ShardStore.usage`."""
        free = self.condition.space().free
        with self._lock:
            states = [state for _, state in self._table.items()]
            return VolumeUsage(
                segments=len(states),
                bytes_used=sum(state.size for state in states),
                bytes_live=sum(state.live for state in states),
                bytes_free=0 if self.condition.read_only else free,
                shards=self._index.entries(),
            )

    def present(self) -> bool:
        """Whether the directory still contains a volume; True if this cannot be found out now."""
        if self.condition.has_failed:
            return False
        try:
            there = IDENTITY_FILE in self._filesystem.names(self.path)
            self.condition.refusal = ""
            return there
        except FileNotFoundError:
            return False
        except OSError as error:
            self.condition.refusal = f"volume {self.path} cannot be read now: {error}"
            return True

    def close(self) -> None:
        """See :meth:`ShardStore.close`. A failed volume is closed without touching its files."""
        try:
            if not self.condition.has_failed and not self.condition.read_only:
                with self._lock:
                    self._writer.seal()
                self._durability.flush_index()
        finally:
            self.condition.end(f"volume {self.path} is closed")
            self._index.close()
            self._writer.let_go()
            self._unflushed.clear()
            self.files.clear()

    def abandon(self, reason: str) -> None:
        """See :meth:`ShardStore.abandon`: close without writing anything."""
        self.condition.end(reason)
        # Wait for a write in progress to end before the directory is opened again, but not for long on a hanging disk.
        drained = self._lock.acquire(timeout=_DRAIN_S)
        try:
            self.close()
        finally:
            if drained:
                self._lock.release()

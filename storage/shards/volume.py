"""A volume: a directory of append-only segment files on one disk, with a derivable index.

:class:`LocalVolume` puts the parts of a volume together; what each of them does is in a module of its own.

Locks, in the order in which they are taken. Whoever holds one takes only those below it:

1. that of :class:`~storage.shards.compaction.Compaction`: one compaction at a time.
2. that of :class:`~storage.shards.durability.Durability`: one sync at a time, from its begin to its end. Files are
   flushed, and the index is written to disk, under this one alone, so that appends go on meanwhile.
3. the volume's, which is made here and given to the parts. It guards what a record is written and indexed by: the
   active segment, the table of segments, the entries of the index, what is unflushed, and the room. ``Entries``,
   ``SegmentTable``, ``Unflushed``, ``Room``, ``SegmentWriter``, ``WriteAccess.require``, ``Appender.append_copy`` and
   ``Appender.append_raw`` leave it to their callers to take it (their docstrings name the exceptions). All others take
   it where they change any of that.
4. that of :class:`~storage.shards.segment_files.SegmentFiles`: the files that are open, while one is opened.

Readers take the last one only, unless they give back a record that was set aside. They look up single entries of the
index and of the table. An entry is there only after its bytes were written and its segment's size was raised, and a
record that is not where the index said is looked up again: a compaction may have moved it. The condition has no lock:
an error is noted by whoever meets it. A volume that is being opened is known to nobody else, and is replayed without
locks.
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
from storage.shards.filesystem import FileSystem, LocalFileSystem
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
from storage.shards.segment_files import SegmentFiles
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

    Where its disk takes no writes, it is opened, or goes on, for reading; writes try again from time to time.

    Args:
        path: the directory; must carry ``identity``.
        identity: what :func:`~storage.shards.identity.read_identity` found, or a new one.
        filesystem: the door to the disk.
        segment_bytes_max: a segment is closed when the next record would pass this size.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.

    Raises:
        FormatError: the directory cannot be read as a volume.
        StoreFull: no space for a new index.
        VolumeUnavailable: the machine cannot open it now.
        VolumeFailed: the disk failed meanwhile.

    Attributes:
        condition: whether it can be read and written now.
        files: its segments' files.
        shrank: segments that its index knew of were gone or cut short when it was opened.
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
        self._unflushed = Unflushed()
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
        """Make sure that the directory holds this volume, and begin a new one only where there is none."""
        if not lacks_identity(self.path, self.identity, self._filesystem):
            return
        try:
            write_identity(self.path, self.identity, self._filesystem)
        except OSError as error:
            if fault_of(error) is not Fault.READ_ONLY:
                raise
            self.condition.note_read_only(error)  # the segments tell what it is

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
        """Replay what the index lacks, and go on with the last segment; whether segments were gone or cut short."""
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
        """``"ok"``, ``"read-only"``, ``"full"``, ``"refusing"`` or ``"failed"``, and why."""
        return self.condition.summary()

    def can_be_written(self) -> bool:
        """Whether its disk takes writes, tried again from time to time if it did not, and is not known to be full."""
        return self._access.can_be_written()

    @property
    def wanted(self) -> int:
        """Bytes for which its file system had no space when a write was refused last; 0 if there was, or is again."""
        return self.condition.room.wanted

    def has_room(self, length: int) -> bool:
        """Whether its file system has space for so many bytes; also if that cannot be told now."""
        try:
            return self.condition.room.has(length)
        except StorageError as error:
            log.debug("the space of volume %s cannot be told: %s", self.path, error)
            return True

    # -- writing ---------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """See :meth:`ShardStore.append`."""
        self._appender.append(shards, urgent=urgent)

    # -- durability ------------------------------------------------------------------------------

    def sync(self) -> None:
        """See :meth:`ShardStore.sync`."""
        self._durability.sync()

    def begin_sync(self, *, whole_index: bool = False) -> PendingSync | None:
        """First half of a sync, for callers that flush several volumes at once: note what must be flushed.

        None if there is nothing to do. Otherwise this volume's syncs wait until :meth:`end_sync`.
        """
        return self._durability.begin(whole_index=whole_index)

    def end_sync(self, pending: PendingSync, error: Exception | None = None) -> None:
        """Second half: everything noted by :meth:`begin_sync` has been flushed, or that failed.

        Raises:
            VolumeFailed: flushing failed, or the directory is gone.
            VolumeUnavailable: it could not be begun; it is all still to do.
        """
        self._durability.end(pending, error)

    def cancel_sync(self, pending: PendingSync) -> None:
        """In place of the second half, when flushing was not gone through with: it is all still to do."""
        self._durability.cancel(pending)

    def flush(self, pending: PendingSync, *, files: bool = True) -> Exception | None:
        """Flush what :meth:`begin_sync` noted; the error to pass to :meth:`end_sync`.

        Args:
            pending: what to flush.
            files: flush the files as well as the directory; False if that has been done.
        """
        return self._durability.flush(pending, files=files)

    def flush_index(self) -> None:
        """Sync, and bring the whole index to disk, if that takes writes."""
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
        """Bytes of each segment by its number, in order."""
        return self._table.sizes()

    def verify(self, progress: Callable[[int], None], segments: Iterable[int] | None = None) -> Verification:
        """See :meth:`ShardStore.verify`. With ``segments``, only what is in these is read, all else counts as good."""
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
        """All records set aside, by shard."""
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
        """Whether the directory is still there and still ours, as far as can be told now."""
        if self.condition.has_failed:
            return False
        try:
            there = IDENTITY_FILE in self._filesystem.names(self.path)
            self.condition.refusal = ""
            return there
        except FileNotFoundError:
            return False
        except OSError as error:
            self.condition.refusal = f"volume {self.path} cannot be looked at now: {error}"
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
        # Whoever is writing must have ended before the directory is opened anew; a hanging disk holds up nobody.
        drained = self._lock.acquire(timeout=_DRAIN_S)
        try:
            self.close()
        finally:
            if drained:
                self._lock.release()

"""A volume: a directory of append-only segment files on one disk, with a derivable index."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from storage.errors import StorageError, StoreFull
from storage.keys import Kind, ShardKey
from storage.limits import MIB, SEGMENT_BYTES_MAX
from storage.shards.appending import Appender
from storage.shards.condition import Condition
from storage.shards.durability import Durability, PendingSync
from storage.shards.entries import Entries
from storage.shards.filesystem import FileSystem, LocalFileSystem
from storage.shards.identity import (
    IDENTITY_FILE,
    VolumeIdentity,
    identity_among,
    read_identity_file,
    write_identity,
)
from storage.shards.index import Aside, SegmentState, ShardIndex
from storage.shards.newest import NewestRecord
from storage.shards.port import (
    CorruptShard,
    Location,
    Shard,
    Verdict,
    Verification,
    VolumeReadOnly,
    VolumeUnavailable,
    VolumeUsage,
)
from storage.shards.quarantine import Quarantine
from storage.shards.reading import Reader
from storage.shards.record import (
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    pack_headers,
)
from storage.shards.record_reader import RecordReader
from storage.shards.record_walk import RecordWalk
from storage.shards.replay import Replay
from storage.shards.scan import ScannedRecord, scan_records
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

_COMPACT_BATCH_BYTES = 8 * MIB
_ROOM_KEPT_BYTES = 4 * MIB  # for the index, and for others on the same disk, while a segment is moved
_DRAIN_S = 5.0


class LocalVolume:
    """A :class:`~storage.shards.port.ShardStore` in a directory. Thread-safe; one process at a time.

    Where its disk takes no writes, it is opened, or goes on, for reading; writes try again from time to time.

    Args:
        path: the directory; must carry ``identity``.
        identity: what :func:`~storage.shards.identity.read_identity` found, or a new one.
        filesystem: the door to the disk.
        segment_bytes_max: a segment is closed when the next record would pass this size.

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
    ) -> None:
        self.path = path
        self.identity = identity
        self._filesystem = filesystem or LocalFileSystem()
        self._key = bytes.fromhex(identity.key)
        self._lock = threading.Lock()
        self._compact_lock = threading.Lock()
        self.condition = Condition(path, self._filesystem)
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
        self._scrub = Scrub(
            self._key,
            files=self.files,
            table=self._table,
            index=self._index,
            reader=self._reader,
            quarantine=self._quarantine,
            unread=self._unread,
            durability=self._durability,
        )
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
            raise VolumeUnavailable(f"volume {path} cannot be opened now: {error}") from error
        except BaseException:
            self._index.close()
            raise
        self.shrank = replay.shrank

    def _identify(self) -> None:
        """Make sure that the directory holds this volume, and begin a new one only where there is none.

        Whoever looked before may have found nothing because the directory was out of reach just then.
        """
        found, is_written = None, True
        try:
            found = read_identity_file(self.path, self._filesystem)
            is_written = found is not None
        except OSError as error:
            if fault_of(error) is not Fault.BROKEN:
                raise
            log.warning("%s cannot be read; the segments tell what it is: %s", self.path / IDENTITY_FILE, error)
        if found is None:
            found = identity_among(self._filesystem.names(self.path), self.path, self._filesystem)
        if found is not None and found.key != self.identity.key:
            raise VolumeUnavailable(f"there is another volume in {self.path} than a moment ago; it is opened anew")
        if is_written:
            return
        try:
            write_identity(self.path, self.identity, self._filesystem)
        except OSError as error:
            if fault_of(error) is not Fault.READ_ONLY:
                raise
            self.condition.note_read_only(error)  # the segments tell what it is

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
        with self._compact_lock:
            with self._lock:
                self.condition.check_usable()
                self._access.require()
            self._unread.look_again()
            self._recount()
            compacted = freed = 0
            for number in self._compactable(live_ratio_max):
                try:
                    freed += self._compact_segment(number)
                except StoreFull:
                    if not compacted:
                        raise
                    break
                except (OSError, VolumeUnavailable) as error:
                    # It may hold what can be read at another time, or on another controller.
                    log.warning("segment %d of %s cannot be compacted now and stays: %s", number, self.path, error)
                    if isinstance(error, VolumeReadOnly):
                        break
                    continue
                compacted += 1
            if freed:
                with self._lock:
                    self.condition.room.note_freed()
            return compacted, freed

    def _recount(self) -> None:
        """Bring the index to disk, and correct counts of live bytes that are too high."""
        with self._lock:
            sizes = self._entries.begin_count()
        self._durability.flush_index()
        if sizes is None:
            return
        counted = self._index.live_bytes()
        with self._lock:
            self._entries.correct(sizes, counted)

    def _compactable(self, live_ratio_max: float) -> list[int]:
        """Segments worth rewriting, emptiest first so that space is there for the rest."""
        with self._lock:
            active = self._writer.active
            if active is not None and self._worth(active, live_ratio_max):
                self._writer.seal()  # the next append starts a new segment
            chosen = [
                (state.live / state.size, number)
                for number, state in self._table.items()
                if self._worth(state, live_ratio_max)
                and not self._writer.is_active(number)
                and not self._index.is_unread(number)
            ]
        return [number for _, number in sorted(chosen)]

    def _worth(self, state: SegmentState, live_ratio_max: float) -> bool:
        if state.size <= SEGMENT_HEADER_BYTES:
            return False
        return state.live <= SEGMENT_HEADER_BYTES or state.live / state.size <= live_ratio_max

    def _compact_segment(self, number: int) -> int:
        """Move live records away, make that durable, then drop the file. Returns bytes freed."""
        before = self._table[number]
        size = before.size
        # Also where no record counts as live: a wrong count must not cost data.
        room = self.condition.space().free
        if room > before.live + _ROOM_KEPT_BYTES:
            moved = self._move_live(number, before.size)
        else:
            moved = self._move_from_end(number, before, room // 4)
        if before.live > SEGMENT_HEADER_BYTES:
            moved += self._move_rest(number, set())
        self._durability.flush_index()
        with self._lock:
            self._access.require()  # the index must have been told where everything has gone
            self._table.drop(number)
            self._unflushed.forget(number)
        self._writer.remove(number)
        return size - moved

    def _move_live(self, number: int, size: int) -> int:
        file = self.files.file(number)
        if file is None:
            return 0
        moved, batch, batch_bytes = 0, [], 0
        for found in scan_records(file, self._key, SEGMENT_HEADER_BYTES, size):
            if not isinstance(found, ScannedRecord) or not found.intact:
                continue
            header = found.header
            here = self._index.get(header.key)
            if here is None or here[:2] != (number, found.offset):
                continue
            batch.append((found.offset, Shard(header.key, header.object_length, header.digest, bytes(found.payload))))
            batch_bytes += HEADER_BYTES + len(found.payload)
            if batch_bytes >= _COMPACT_BATCH_BYTES:
                moved += self._move_batch(number, batch)
                batch, batch_bytes = [], 0
        return moved + self._move_batch(number, batch)

    def _move_from_end(self, number: int, state: SegmentState, batch_bytes_max: int) -> int:
        """Like :meth:`_move_live` for want of room: each piece is cut off before the next one is moved."""
        file = self.files.file(number)
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
            moved += self._move_batch(number, batch)
            self._cut_end(number, state, offset)
        return moved

    def _read_to_move(self, key: ShardKey, number: int, offset: int) -> Shard | None:
        """A record that is still where it was; None if it is not, or if it rotted just now and was set aside."""
        location = self._index.get(key)
        if location is None or location[:2] != (number, offset):
            return None
        try:
            return self._records.read(key, location)
        except CorruptShard:
            if self._quarantine.set_aside(key, location):
                self._move_aside(key, Aside(location, wrong=False))
            return None

    def _is_at(self, key: ShardKey, number: int, offset: int) -> bool:
        here = self._index.get(key)
        return here is not None and here[:2] == (number, offset)

    def _cut_end(self, number: int, state: SegmentState, size: int) -> None:
        """Give back the end of a segment that nothing points into any more."""
        with self._lock:
            state.size = size
        # The index must not count on more than is left, and must know where everything has gone.
        self._durability.flush_index()
        file = self._writer.shorten(number, size)
        with self._lock:
            self._unflushed.note(number, file)

    def _move_rest(self, number: int, intact: set[ShardKey]) -> int:
        """Move, byte by byte, what is no intact record: its place set aside, it may be all that is left of a shard.

        What neither the index nor an authentic header tells of belongs to no shard that anybody could name.
        """
        for key in self._reader.keys():  # noqa: SIM118 - a method of the port, no mapping
            here = self._index.get(key)
            if here is not None and here.segment == number and key not in intact:
                self._quarantine.set_aside(key, here)
        left = [(key, aside) for key, aside in self._index.all_aside().items() if aside.location.segment == number]
        if left:
            log.warning("segment %d of %s: %d records set aside are moved as they are", number, self.path, len(left))
        return sum(self._move_aside(key, aside) for key, aside in left)

    def _move_aside(self, key: ShardKey, aside: Aside) -> int:
        file = self.files.file(aside.location.segment)
        length = HEADER_BYTES + aside.location.payload_length
        raw = memoryview(bytearray(length))
        there = file is not None and self.files.fill(file, [raw], length, aside.location.offset)
        with self._lock:
            self.condition.check_usable()
            if self._index.aside(key) != aside:
                return 0
            if not there:  # the file ends before it does: there is nothing to keep
                self._entries.drop_aside(key, aside)
                return 0
            self._entries.move_aside(key, aside, *self._appender.append_raw(raw))
        return length

    def _move_batch(self, number: int, batch: list[tuple[int, Shard]]) -> int:
        """Append copies and point the index at them, unless a record was removed or replaced meanwhile."""
        shards = [shard for _, shard in batch]
        headers = pack_headers(shards, self._key)
        moved = 0
        with self._lock:
            self.condition.check_usable()
            for (offset, shard), header in zip(batch, headers, strict=True):
                here = self._index.get(shard.key)
                if here is None or here[:2] != (number, offset):
                    continue
                if self._index.recent(shard.key) is None:
                    self._entries.release(here)
                self._appender.append_copy(shard, header)
                moved += HEADER_BYTES + len(shard.payload)
        return moved

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

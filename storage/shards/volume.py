"""A volume: a directory of append-only segment files on one disk, with a derivable index."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3
from cachetools import LRUCache

from storage.errors import FormatError, StorageError, StoreFull
from storage.keys import Kind, ShardKey
from storage.limits import MIB, SEGMENT_BYTES_MAX, BytesLike
from storage.shards.filesystem import FileSystem, LocalFileSystem, VolumeFile
from storage.shards.identity import IDENTITY_FILE, SEGMENT_SUFFIX, VolumeIdentity, read_identity_file, write_identity
from storage.shards.index import PENDING_MAX, IndexDamaged, SegmentState, ShardIndex
from storage.shards.port import (
    CorruptShard,
    DamagedRanges,
    Location,
    Shard,
    Verdict,
    Verification,
    VolumeFailed,
    VolumeUsage,
)
from storage.shards.record import (
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    pack_headers,
    pack_segment_header,
    parse_header,
    parse_segment_header,
)
from storage.shards.scan import Gap, ScannedRecord, scan_records
from storage.shards.verification import LocalVerification

log = logging.getLogger(__name__)

_OPEN_FILES_MAX = 64  # per volume; well below the usual limit of 1024 descriptors with six volumes
_COMPACT_BATCH_BYTES = 8 * MIB
_ROOM_KEPT_BYTES = 4 * MIB  # for the index, and for others on the same disk, while a segment is moved
_RESERVE_SHARE = 50  # keep 1/50 of the file system free, so that deleting and collecting can still write
_RESERVE_BYTES_MIN = 4 * MIB
_RESERVE_BYTES_MAX = 64 * MIB
_SPACE_CHECK_BYTES = 4 * MIB
_ZERO_AHEAD_BYTES = 1 * MIB
_SMALL_APPEND_BYTES = 64 * 1024


class PendingSync(NamedTuple):
    """What a sync has to flush: files, whether the directory too, and the index checkpoint to write then."""

    files: dict[int, VolumeFile]
    directory: bool
    checkpoint: dict[int, tuple[int, int]] | None


class LocalVolume:
    """A :class:`~storage.shards.port.ShardStore` in a directory. Thread-safe; one process at a time.

    Args:
        path: the directory; must carry ``identity``.
        identity: what :func:`~storage.shards.identity.read_identity` found, or a new one.
        filesystem: the door to the disk.
        segment_bytes_max: a segment is closed when the next record would pass this size.
        on_replay: told of every record that the index did not know; its payload is valid during the call.

    Raises:
        FormatError: the directory cannot be read as a volume.
        StoreFull: no space for a new index.
    """

    def __init__(
        self,
        path: Path,
        identity: VolumeIdentity,
        *,
        filesystem: FileSystem | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        on_replay: Callable[[Shard], None] = lambda shard: None,
    ) -> None:
        self.path = path
        self.identity = identity
        self._filesystem = filesystem or LocalFileSystem()
        self._segment_bytes_max = segment_bytes_max
        self._on_replay = on_replay
        self._key = bytes.fromhex(identity.key)
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._compact_lock = threading.Lock()
        self._appended = True  # since live bytes were last counted
        self._files: LRUCache[int, VolumeFile] = LRUCache(_OPEN_FILES_MAX)
        self._files_lock = threading.Lock()
        self._dirty: dict[int, VolumeFile] = {}
        self._directory_dirty = False
        self._failure: Exception | None = None
        self._zeroed = 0
        self._space_checked_at = 0
        self._dropped_segments: list[int] = []
        if read_identity_file(path) is None:
            write_identity(path, identity, self._filesystem)
        self._index = ShardIndex(path / "index")
        self._active: VolumeFile | None = None
        self._active_number = 0
        try:
            self._segments = self._load()
            self._open_active()
        except BaseException:
            self._index.close()
            raise

    # -- writing ---------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """See :meth:`ShardStore.append`."""
        headers = pack_headers(shards, self._key)
        with self._lock:
            self._check_usable()
            start = 0
            while start < len(shards):
                start = self._append_run(shards, headers, start, urgent)

    def _append_run(self, shards: Sequence[Shard], headers: list[bytes], start: int, urgent: bool) -> int:
        """Append as many shards as the active segment takes (at least one); index of the next one."""
        state = self._segments.get(self._active_number)
        size = state.size if state else 0
        if self._active is None or (
            size > SEGMENT_HEADER_BYTES and size + HEADER_BYTES + len(shards[start].payload) > self._segment_bytes_max
        ):
            state = self._roll()
            size = state.size
        assert state is not None
        assert self._active is not None
        buffers: list[BytesLike] = []
        offset, stop = size, start
        for index in range(start, len(shards)):
            length = HEADER_BYTES + len(shards[index].payload)
            if index > start and offset + length > self._segment_bytes_max:
                break
            buffers.append(headers[index])
            buffers.append(shards[index].payload)
            offset += length
            stop = index + 1
        if not urgent:
            self._check_space(offset - size)
        self._write(buffers, size)
        if offset > self._zeroed:
            self._zero_ahead(offset, offset - size, urgent)
        state.size = offset  # before any entry points there: a scrub takes what lies beyond for rotten
        self._enter(shards[start:stop], self._active_number, size)
        self._dirty[self._active_number] = self._active
        return stop

    def _write(self, buffers: Sequence[BytesLike], offset: int) -> None:
        assert self._active is not None
        try:
            self._active.write(buffers, offset)
        except StoreFull:
            self._cut(offset)
            raise
        except OSError as error:
            raise self._fail(error) from error

    def _zero_ahead(self, end: int, written: int, urgent: bool) -> None:
        """After a small append, write zeros behind it for the next ones to overwrite.

        A file that does not grow spares each flush a journal commit (measured: 0.26 ms against
        0.36 ms for six volumes). Readers take zeros at a segment's end for what they are: nothing.
        """
        assert self._active is not None
        self._zeroed = end
        room = min(_ZERO_AHEAD_BYTES, self._segment_bytes_max - end)
        if written > _SMALL_APPEND_BYTES or room <= 0 or urgent:
            return
        try:
            self._check_space(room)
        except StoreFull:
            return  # zeros are not what the reserve is kept for
        try:
            self._active.write([bytes(room)], end)
            self._zeroed = end + room
        except StoreFull:
            self._cut(end)
        except OSError as error:
            raise self._fail(error) from error

    def _cut(self, offset: int) -> None:
        """Take back a write that did not fit."""
        assert self._active is not None
        try:
            self._active.truncate(offset)
        except OSError as error:
            raise self._fail(error) from error

    def _enter(self, shards: Sequence[Shard], segment: int, offset: int) -> None:
        """Index records that were just written, releasing those they replace.

        Only recent entries can be replaced here: writers ask for a shard's presence first, so a
        second copy comes from a race between them. Looking in memory alone is what that needs.
        """
        start = offset
        for key, object_length, _, payload in shards:
            length = len(payload)
            replaced = self._index.replace(key, segment, offset, length, object_length)
            if replaced is not None:
                self._release(replaced)
            offset += HEADER_BYTES + length
        self._segments[segment].live += offset - start
        self._appended = True

    def _release(self, location: Location) -> None:
        state = self._segments.get(location.segment)
        if state is not None:
            state.live -= HEADER_BYTES + location.payload_length

    def _check_space(self, length: int) -> None:
        """Refuse writes that would eat into the reserve that deleting and collecting need."""
        self._space_checked_at -= length
        if self._space_checked_at > 0:
            return
        status = self._status()
        free = status.f_bavail * status.f_frsize
        reserve = min(max(status.f_blocks * status.f_frsize // _RESERVE_SHARE, _RESERVE_BYTES_MIN), _RESERVE_BYTES_MAX)
        if free - length < reserve:
            raise StoreFull(
                f"volume {self.path} has {free} bytes free, of which {reserve} are kept for deleting and collecting; "
                "delete files and run collect, or add room"
            )
        self._space_checked_at = min(_SPACE_CHECK_BYTES, (free - length - reserve) // 8)

    # -- segments --------------------------------------------------------------------------------

    def _segment_path(self, number: int) -> Path:
        return self.path / f"{number:08d}{SEGMENT_SUFFIX}"

    def _roll(self) -> SegmentState:
        """Start a new active segment; the old one is synced with everything else."""
        self._seal()
        number = self._active_number + 1
        header = SegmentHeader(
            store_id=bytes.fromhex(self.identity.store_id),
            volume_key=self._key,
            slot=self.identity.slot,
            volume_count=self.identity.volumes,
            number=number,
            created_ms=max(0, time.time_ns() // 1_000_000),  # the clock may stand before 1970
            chunk_size=self.identity.chunk_size,
            k=self.identity.k,
            n=self.identity.n,
        )
        path = self._segment_path(number)
        try:
            file = self._filesystem.create(path)
        except StoreFull:
            raise
        except OSError as error:
            raise self._fail(error) from error
        try:
            file.write([pack_segment_header(header)], 0)
        except StoreFull:
            self._filesystem.remove(path)
            raise
        except OSError as error:
            raise self._fail(error) from error
        self._active, self._active_number, self._zeroed = file, number, 0
        self._segments[number] = SegmentState(SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES)
        self._dirty[number] = file
        self._directory_dirty = True
        with self._files_lock:
            self._files[number] = file
        return self._segments[number]

    def _seal(self) -> None:
        """Done appending to the active segment: give back the zeros behind its records."""
        active, self._active = self._active, None
        state = self._segments.get(self._active_number)
        if active is None or state is None or self._zeroed <= state.size:
            return
        try:
            active.truncate(state.size)
        except OSError as error:
            raise self._fail(error) from error
        self._dirty[self._active_number] = active
        self._zeroed = 0

    def _open_active(self) -> None:
        """Go on with the last segment if it has room; otherwise the next append starts a new one."""
        state = self._segments.get(self._active_number)
        if state is None or state.size >= self._segment_bytes_max:
            return
        file = self._filesystem.open(self._segment_path(self._active_number), writable=True)
        if file.size() > state.size:
            file.truncate(state.size)
            # The cut must not be undone by a crash after new records were written behind it.
            self._dirty[self._active_number] = file
        self._active = file
        with self._files_lock:
            self._files[self._active_number] = file

    def _load(self) -> dict[int, SegmentState]:
        try:
            return self._load_segments()
        except IndexDamaged:
            self._index.clear()
            return self._load_segments()

    def _load_segments(self) -> dict[int, SegmentState]:
        """Segments on disk; whatever their index lacks is read in (the replay after a crash)."""
        numbers = sorted(int(path.stem) for path in self.path.glob(f"*{SEGMENT_SUFFIX}") if path.stem.isdigit())
        sizes = {number: self._segment_path(number).stat().st_size for number in numbers}
        self._segments = {}
        known = self._index.segments()
        if any(_shrunk(state, sizes.get(number)) for number, state in known.items()):
            log.warning("segments of %s are gone or cut short; its index is made again", self.path)
            self._index.clear()
            known = {}
        self._dropped_segments = [number for number in known if number not in sizes]
        # Numbers are never used twice, so that a stale entry can't point into a later segment.
        self._active_number = max([*numbers, *known], default=0)
        # Segments made by a process that died before its sync have names that are not durable yet.
        self._directory_dirty = any(number not in known for number in numbers)
        for number, size in sizes.items():
            state = known.get(number, SegmentState(SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES))
            self._segments[number] = state
            if state.size < size:
                self._replay(number, state, size)
            if number not in known and state.size == SEGMENT_HEADER_BYTES and not self._has_header(number):
                # A crash came between creating this segment and making its first block durable.
                self._filesystem.remove(self._segment_path(number))
                del self._segments[number]
        return self._segments

    def _has_header(self, number: int) -> bool:
        with self._segment_path(number).open("rb") as stream:
            try:
                return parse_segment_header(stream.read(SEGMENT_HEADER_BYTES)).number == number
            except FormatError:
                return False

    def _replay(self, number: int, state: SegmentState, size: int) -> None:
        """Index the intact records behind the last durable point; what follows the last one is cut."""
        file = self._filesystem.open(self._segment_path(number), writable=False)
        file.drop_cache()
        # These bytes may have survived their writer in memory only; the next commit relies on them.
        self._dirty[number] = file
        for found in scan_records(file, self._key, state.size, size):
            if isinstance(found, ScannedRecord) and found.intact:
                shard = Shard(found.header.key, found.header.object_length, found.header.digest, found.payload)
                self._replay_record(shard, number, found.offset)
                self._on_replay(shard)
                state.size = found.stop
                self._dirty[number] = file
            if self._index.pending >= PENDING_MAX:
                self._flush_replayed()

    def _flush_replayed(self) -> None:
        """Write the index during a replay; what it then points to must be durable, in whichever segment."""
        for file in self._dirty.values():
            file.datasync()
        self._filesystem.sync_directory(self.path)
        self._dirty, self._directory_dirty = {}, False
        self._flush_frozen()

    def _replay_record(self, shard: Shard, number: int, offset: int) -> None:
        old = self._index.get(shard.key)
        if old is not None and old[:2] != (number, offset):
            self._release(old)
        self._index.put(shard.key, (number, offset, len(shard.payload), shard.object_length))
        self._segments[number].live += HEADER_BYTES + len(shard.payload)

    def _file(self, number: int) -> VolumeFile | None:
        with self._files_lock:
            file = self._files.get(number)
            if file is None:
                try:
                    file = self._filesystem.open(self._segment_path(number), writable=False)
                except FileNotFoundError:
                    return None
                self._files[number] = file
            return file

    # -- durability ------------------------------------------------------------------------------

    def sync(self) -> None:
        """See :meth:`ShardStore.sync`."""
        self._sync()

    def _sync(self, *, whole_index: bool = False) -> None:
        pending = self.begin_sync(whole_index=whole_index)
        if pending is None:
            return
        try:
            error = self.flush(pending)
        except BaseException:
            self.cancel_sync(pending)
            raise
        self.end_sync(pending, error)

    def begin_sync(self, *, whole_index: bool = False) -> PendingSync | None:
        """First half of a sync, for callers that flush several volumes at once: note what must be flushed.

        None if there is nothing to do. Otherwise this volume's syncs wait until :meth:`end_sync`.
        """
        self._sync_lock.acquire()
        try:
            with self._lock:
                self._check_usable()
                frozen = bool(self._index.pending) if whole_index else self._index.pending >= PENDING_MAX
                if not self._dirty and not self._directory_dirty and not frozen:
                    self._sync_lock.release()
                    return None
                frozen = frozen and self._index.freeze()
                pending = PendingSync(self._dirty, self._directory_dirty, self._checkpoint() if frozen else None)
                self._dirty, self._directory_dirty = {}, False
                return pending
        except BaseException:
            self._sync_lock.release()
            raise

    def end_sync(self, pending: PendingSync, error: Exception | None = None) -> None:
        """Second half: everything noted by :meth:`begin_sync` has been flushed, or that failed.

        Raises:
            VolumeFailed: flushing failed, or the directory is gone.
        """
        try:
            active = self._active
            if error is None and active is not None and active.removed():
                error = FileNotFoundError(f"{self.path} was removed while in use")
            if error is not None:
                # After a failed flush nothing since the last good one can be trusted until it has been
                # read back from the disk, which opening again does.
                raise self._fail(error) from error
            if pending.checkpoint is not None:
                self._flush_index(pending.checkpoint)
        finally:
            self._sync_lock.release()

    def cancel_sync(self, pending: PendingSync) -> None:
        """In place of the second half, when flushing was not gone through with: it is all still to do."""
        with self._lock:
            self._dirty = {**pending.files, **self._dirty}
            self._directory_dirty = self._directory_dirty or pending.directory
            if pending.checkpoint is not None:
                self._index.thaw()
        self._sync_lock.release()

    def flush(self, pending: PendingSync, *, files: bool = True) -> Exception | None:
        """Flush what :meth:`begin_sync` noted; the error to pass to :meth:`end_sync`.

        Args:
            pending: what to flush.
            files: flush the files as well as the directory; False if that has been done.
        """
        try:
            for file in pending.files.values() if files else ():
                file.datasync()
            if pending.directory:
                self._filesystem.sync_directory(self.path)
        except (OSError, StoreFull) as error:
            return error
        return None

    def _checkpoint(self) -> dict[int, tuple[int, int]]:
        # A count below zero comes of rotten index entries; kept as zero, it has the index made again.
        return {number: (state.size, max(state.live, 0)) for number, state in self._segments.items()}

    def _flush_index(self, checkpoint: dict[int, tuple[int, int]]) -> None:
        # The row of the last segment stays, be the file gone: it tells the next free number.
        dropped = [number for number in self._dropped_segments if number != self._active_number]
        self._dropped_segments = [number for number in self._dropped_segments if number == self._active_number]
        try:
            self._index.flush(checkpoint, dropped)
        except StoreFull:
            # The records themselves are durable; their entries stay in memory and are found again
            # by reading the segments if need be.
            log.warning("no space for the index of %s; it stays in memory", self.path)
            self._index.thaw()
            self._dropped_segments += dropped
        except StorageError:
            self._index.thaw()
            self._dropped_segments += dropped
            raise

    def _flush_frozen(self) -> None:
        if self._index.freeze():
            self._flush_index(self._checkpoint())

    def flush_index(self) -> None:
        """Sync, and bring the whole index to disk."""
        self._sync(whole_index=True)

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
        location = self._index.get(key)
        if location is None or location.payload_length != length:
            return False
        file = self._file(location.segment)
        if file is not None and file.read_into(buffers, location.offset + HEADER_BYTES) == length:
            return True
        return self._moved(key, location) and self.read_into(key, buffers, length)

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> Sequence[memoryview | None]:
        """See :meth:`ShardStore.fetch_all`."""
        payloads: list[memoryview | None] = []
        for key, length in wanted:
            payload = memoryview(bytearray(length))
            payloads.append(payload if self.read_into(key, [payload], length) else None)
        return payloads

    def read(self, key: ShardKey) -> Shard | None:
        """See :meth:`ShardStore.read`."""
        location = self._index.get(key)
        if location is None:
            return None
        try:
            return self._read_at(key, location)
        except CorruptShard:
            if self._moved(key, location):
                return self.read(key)
            raise

    def _read_at(self, key: ShardKey, location: Location) -> Shard:
        file = self._file(location.segment)
        if file is None:
            raise CorruptShard(f"segment {location.segment} of {self.path} is gone")
        raw = memoryview(bytearray(HEADER_BYTES + location.payload_length))
        if file.read_into([raw], location.offset) != len(raw):
            raise CorruptShard(f"record at {location.segment}:{location.offset} of {self.path} is cut short")
        header = parse_header(raw[:HEADER_BYTES], self._key)
        payload = raw[HEADER_BYTES:]
        if header is None or header.key != key or header.payload_length != len(payload):
            raise CorruptShard(f"record at {location.segment}:{location.offset} of {self.path} is not shard's")
        if blake3(payload).digest() != header.digest:
            raise CorruptShard(f"payload at {location.segment}:{location.offset} of {self.path} is rotten")
        return Shard(key, header.object_length, header.digest, payload)

    def _moved(self, key: ShardKey, location: Location) -> bool:
        """Whether compaction moved the shard since it was looked up."""
        return self._index.get(key) not in (None, location)

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        """See :meth:`ShardStore.keys`."""
        self.flush_index()
        yield from self._index.keys(start, stop)

    def records(self, kinds: frozenset[Kind]) -> Iterator[Shard]:
        """See :meth:`ShardStore.records`."""
        for number in sorted(self._segments):
            file, state = self._file(number), self._segments.get(number)
            if file is None or state is None:
                continue
            for found in scan_records(file, self._key, SEGMENT_HEADER_BYTES, state.size, past_errors=True):
                if not isinstance(found, ScannedRecord) or not found.intact or found.header.key[32] not in kinds:
                    continue
                # What a collect has dropped must not come back for being still on disk.
                if self._index.get(found.header.key) is not None:
                    yield Shard(found.header.key, found.header.object_length, found.header.digest, bytes(found.payload))

    def segment_sizes(self) -> dict[int, int]:
        """Bytes of each segment by its number, in order."""
        return {number: state.size for number, state in sorted(self._segments.items())}

    def damaged_ranges(self, progress: Callable[[int], None], segments: Iterable[int] | None = None) -> DamagedRanges:
        """Read and verify what is stored (in ``segments``, default all); where the bytes are bad.

        ``progress`` gets bytes read.
        """
        bad = DamagedRanges()
        self.flush_index()
        self._index.check()
        for number in sorted(self._segments if segments is None else segments):
            state = self._segments.get(number)
            if state is None:
                continue
            file = self._file(number)
            indexed = state.size  # once: what is appended during the scan is none of its business
            size = min(indexed, file.size()) if file else 0
            if file is not None:
                self._scrub_segment(file, number, size, bad, progress)
            if size < indexed and number in self._segments:
                bad.add(number, size, indexed)
        return bad

    def verify(self, progress: Callable[[int], None], segments: Iterable[int] | None = None) -> Verification:
        """See :meth:`ShardStore.verify`. With ``segments``, only what is in these is read, all else counts as good."""
        return LocalVerification(self, self.damaged_ranges(progress, segments))

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """See :meth:`ShardStore.check`."""
        return [self._check_one(key) for key in keys]

    def _check_one(self, key: ShardKey) -> Verdict:
        while True:
            place = self.locate(key)
            try:
                return Verdict.MISSING if place is None or self.read(key) is None else Verdict.GOOD
            except CorruptShard:
                if place is not None and self.discard(key, place):
                    return Verdict.ROTTEN  # otherwise a collect moved it meanwhile

    def _scrub_segment(
        self, file: VolumeFile, number: int, size: int, bad: DamagedRanges, progress: Callable[[int], None]
    ) -> None:
        for found in scan_records(file, self._key, SEGMENT_HEADER_BYTES, size, past_errors=True):
            if isinstance(found, Gap):
                bad.add(number, found.offset, found.stop)
                progress(found.stop - found.offset)
                continue
            if not found.intact:
                bad.add(number, found.offset, found.stop)
            progress(found.stop - found.offset)

    def holds(self, key: ShardKey, location: Location) -> bool:
        """Whether the record at a location is this shard's, judged by its header."""
        file = self._file(location.segment)
        raw = memoryview(bytearray(HEADER_BYTES))
        if file is None or file.read_into([raw], location.offset) != HEADER_BYTES:
            return False
        header = parse_header(raw, self._key)
        return header is not None and header[:3] == (key, location.object_length, location.payload_length)

    def covers(self, segment: int, stop: int) -> bool:
        """Whether a segment is there and reaches to offset ``stop``."""
        state = self._segments.get(segment)
        return state is not None and stop <= state.size

    # -- removal and compaction ------------------------------------------------------------------

    def remove(self, keys: Iterable[ShardKey]) -> int:
        """See :meth:`ShardStore.remove`."""
        removed = 0
        for key in keys:
            with self._lock:
                location = self._index.get(key)
                if location is not None:
                    self._index.remove(key)
                    self._release(location)
                    removed += 1
            if self._index.pending >= PENDING_MAX:
                self.flush_index()
        return removed

    def discard(self, key: ShardKey, location: Location) -> bool:
        """See :meth:`ShardStore.discard`."""
        with self._lock:
            if self._index.get(key) != location:
                return False
            self._index.remove(key)
            self._release(location)
            return True

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        """See :meth:`ShardStore.compact`."""
        with self._compact_lock:
            self._recount()
            compacted = freed = 0
            for number in self._compactable(live_ratio_max):
                try:
                    freed += self._compact_segment(number)
                except StoreFull:
                    if not compacted:
                        raise
                    break
                except OSError as error:
                    # It may hold what can be read at another time, or on another controller.
                    log.warning("segment %d of %s cannot be read and stays: %s", number, self.path, error)
                    continue
                compacted += 1
            return compacted, freed

    def _recount(self) -> None:
        """Bring the index to disk, and correct counts of live bytes that are too high.

        A shard that is stored a second time, its entry being in LMDB already, leaves its first record counted.
        """
        with self._lock:
            sizes = {number: state.size for number, state in self._segments.items()}
            appended, self._appended = self._appended, False
        self.flush_index()
        if not appended:
            return
        counted = self._index.live_bytes()
        with self._lock:
            for number, size in sizes.items():
                state = self._segments.get(number)
                if state is not None:  # what was appended meanwhile may not be among what was counted
                    most = SEGMENT_HEADER_BYTES + counted[number] + state.size - size
                    state.live = min(state.live, most)

    def _compactable(self, live_ratio_max: float) -> list[int]:
        """Segments worth rewriting, emptiest first so that space is there for the rest."""
        with self._lock:
            active = self._segments.get(self._active_number)
            if active and self._active is not None and self._worth(active, live_ratio_max):
                self._seal()  # the next append starts a new segment
            chosen = [
                (state.live / state.size, number)
                for number, state in self._segments.items()
                if self._worth(state, live_ratio_max) and not (self._active and number == self._active_number)
            ]
        return [number for _, number in sorted(chosen)]

    def _worth(self, state: SegmentState, live_ratio_max: float) -> bool:
        if state.size <= SEGMENT_HEADER_BYTES:
            return False
        return state.live <= SEGMENT_HEADER_BYTES or state.live / state.size <= live_ratio_max

    def _compact_segment(self, number: int) -> int:
        """Move live records away, make that durable, then drop the file. Returns bytes freed."""
        before = self._segments[number]
        size = before.size
        # Also where no record counts as live: a wrong count must not cost data.
        room = self._room()
        if room > before.live + _ROOM_KEPT_BYTES:
            moved = self._move_live(number, before.size)
        else:
            moved = self._move_from_end(number, before, room // 4)
        if before.live > SEGMENT_HEADER_BYTES:
            self._forget(number)
        self.flush_index()
        with self._lock:
            self._segments.pop(number, None)
            self._dirty.pop(number, None)
            self._dropped_segments.append(number)
        with self._files_lock:
            self._files.pop(number, None)
        try:
            self._filesystem.remove(self._segment_path(number))
            self._filesystem.sync_directory(self.path)
        except OSError as error:
            raise self._fail(error) from error
        return size - moved

    def _move_live(self, number: int, size: int) -> int:
        file = self._file(number)
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
        file = self._file(number)
        if file is None:
            return 0
        keys = [
            (found.offset, found.header.key)
            for found in scan_records(file, self._key, SEGMENT_HEADER_BYTES, state.size)
            if isinstance(found, ScannedRecord) and found.intact and self._is_at(found.header.key, number, found.offset)
        ]
        moved = 0
        while keys:
            batch: list[tuple[int, Shard]] = []
            batch_bytes = 0
            while keys and (not batch or batch_bytes < min(batch_bytes_max, _COMPACT_BATCH_BYTES)):
                offset, key = keys.pop()
                shard = self.read(key) if self._is_at(key, number, offset) else None
                if shard is not None:
                    batch.append((offset, shard))
                    batch_bytes += HEADER_BYTES + len(shard.payload)
            moved += self._move_batch(number, batch)
            self._cut_end(number, state, offset)
        return moved

    def _is_at(self, key: ShardKey, number: int, offset: int) -> bool:
        here = self._index.get(key)
        return here is not None and here[:2] == (number, offset)

    def _cut_end(self, number: int, state: SegmentState, size: int) -> None:
        """Give back the end of a segment that nothing points into any more."""
        with self._lock:
            state.size = size
        # The index must not count on more than is left, and must know where everything has gone.
        self.flush_index()
        try:
            file = self._filesystem.open(self._segment_path(number), writable=True)
            file.truncate(size)
        except OSError as error:
            raise self._fail(error) from error
        with self._lock:
            self._dirty[number] = file

    def _forget(self, number: int) -> None:
        """Drop entries of records that could not be moved, being rotten, so that repair makes them again."""
        left = [(key, here) for key in self.keys() if (here := self._index.get(key)) and here.segment == number]
        if left:
            log.warning("segment %d of %s: %d rotten shards were left behind", number, self.path, len(left))
        for key, here in left:
            self.discard(key, here)

    def _move_batch(self, number: int, batch: list[tuple[int, Shard]]) -> int:
        """Append copies and point the index at them, unless a record was removed or replaced meanwhile."""
        shards = [shard for _, shard in batch]
        headers = pack_headers(shards, self._key)
        moved = 0
        with self._lock:
            self._check_usable()
            for (offset, shard), header in zip(batch, headers, strict=True):
                here = self._index.get(shard.key)
                if here is None or here[:2] != (number, offset):
                    continue
                if self._index.recent(shard.key) is None:
                    self._release(here)
                self._append_run([shard], [header], 0, True)
                moved += HEADER_BYTES + len(shard.payload)
        return moved

    # -- the rest --------------------------------------------------------------------------------

    def usage(self) -> VolumeUsage:
        """See :meth:`ShardStore.usage`."""
        status = self._status()
        with self._lock:
            states = list(self._segments.values())
            return VolumeUsage(
                segments=len(states),
                bytes_used=sum(state.size for state in states),
                bytes_live=sum(state.live for state in states),
                bytes_free=status.f_bavail * status.f_frsize,
                shards=self._index.entries(),
            )

    def _room(self) -> int:
        status = self._status()
        return status.f_bavail * status.f_frsize

    def _status(self) -> os.statvfs_result:
        try:
            return os.statvfs(self.path)
        except OSError as error:
            raise self._fail(error) from error

    def present(self) -> bool:
        """Whether the directory is still there and still ours."""
        return self._failure is None and (self.path / IDENTITY_FILE).exists()

    def close(self) -> None:
        """See :meth:`ShardStore.close`. A failed volume is closed without touching its files."""
        try:
            if self._failure is None:
                with self._lock:
                    self._seal()
                self.flush_index()
        finally:
            self._failure = self._failure or VolumeFailed(f"volume {self.path} is closed")
            self._index.close()
            self._active = None
            self._dirty.clear()
            with self._files_lock:
                self._files.clear()

    def abandon(self, reason: str) -> None:
        """See :meth:`ShardStore.abandon`: close without writing anything."""
        self._failure = self._failure or VolumeFailed(reason)
        self.close()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise VolumeFailed(f"volume {self.path} cannot be used: {self._failure}")

    def _fail(self, error: Exception) -> VolumeFailed:
        if self._failure is None:
            log.error("volume %s failed: %s", self.path, error)
            self._failure = error
        return VolumeFailed(f"volume {self.path} failed: {error}; replace the disk or directory and run repair")


def _shrunk(state: SegmentState, size: int | None) -> bool:
    """Whether a segment is not as indexed: cut short, gone with live records in it, or its counts cannot be."""
    if size is None:
        return state.live > SEGMENT_HEADER_BYTES
    return size < state.size or not SEGMENT_HEADER_BYTES <= state.live <= state.size

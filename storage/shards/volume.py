"""A volume: a directory of append-only segment files on one disk, with a derivable index."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from storage.batching import batched
from storage.errors import StorageError, StoreFull
from storage.formats.sequences import bears_sequence, is_own, sequence_in
from storage.keys import Kind, ShardKey, kind_of
from storage.limits import MIB, SEGMENT_BYTES_MAX
from storage.shards.appending import Appender
from storage.shards.condition import Condition
from storage.shards.durability import Durability, PendingSync
from storage.shards.entries import Entries
from storage.shards.filesystem import FileSystem, LocalFileSystem, VolumeFile
from storage.shards.identity import (
    IDENTITY_FILE,
    VolumeIdentity,
    identity_among,
    read_identity_file,
    write_identity,
)
from storage.shards.index import Aside, Newest, SegmentState, ShardIndex
from storage.shards.port import (
    CorruptShard,
    DamagedRanges,
    Location,
    Shard,
    Verdict,
    Verification,
    VolumeReadOnly,
    VolumeUnavailable,
    VolumeUsage,
)
from storage.shards.record import (
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    pack_headers,
    parse_header,
)
from storage.shards.replay import Replay
from storage.shards.scan import Gap, ScannedRecord, scan_records
from storage.shards.sectors import BadSectors, any_page
from storage.shards.segment_files import SegmentFiles
from storage.shards.segment_table import SegmentTable
from storage.shards.segment_writer import SegmentWriter
from storage.shards.unflushed import Unflushed
from storage.shards.unread import UnreadParts
from storage.shards.verification import LocalVerification
from storage.shards.write_access import WriteAccess
from storage.system.faults import Fault, fault_of

log = logging.getLogger(__name__)

_PAGE_OF_RECORDS_BYTES = 256 * 1024  # whoever asks many volumes has a page or two of each
_SCANNED_TOGETHER_BYTES = 16 * MIB
_READ_TOGETHER = 64
_COMPACT_BATCH_BYTES = 8 * MIB
_ROOM_KEPT_BYTES = 4 * MIB  # for the index, and for others on the same disk, while a segment is moved
_DRAIN_S = 5.0
_UNREADABLE_RECORDS_MAX = 16  # passed over in search of the newest record; each may take the disk seconds


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
        location = self._index.get(key)
        if location is None or location.payload_length != length:
            return False
        file = self.files.file(location.segment)
        if file is not None and self.files.fill(file, buffers, length, location.offset + HEADER_BYTES):
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
            return self._restored(key)
        try:
            return self._read_at(key, location)
        except CorruptShard:
            if self._moved(key, location):
                return self.read(key)
            raise

    def _restored(self, key: ShardKey) -> Shard | None:
        """A shard that was set aside for being unreadable, and reads well now: it counts as there again."""
        aside = self._index.aside(key)
        if aside is None or aside.wrong:
            return None
        try:
            shard = self._read_at(key, aside.location)
        except CorruptShard:
            return None
        with self._lock:
            if self._entries.restore(key, aside):
                log.info("shard %s of %s can be read again", key.hex(), self.path)
        return shard

    def _read_at(self, key: ShardKey, location: Location) -> Shard:
        """The record at a place; read once more past the cache if it is bad, which memory may be to blame for."""
        file = self.files.file(location.segment)
        if file is None:
            raise CorruptShard(f"segment {location.segment} of {self.path} is gone")
        try:
            return self._verified(file, key, location)
        except CorruptShard:
            self.files.drop_cache(file)
            return self._verified(file, key, location)

    def _verified(self, file: VolumeFile, key: ShardKey, location: Location) -> Shard:
        raw = memoryview(bytearray(HEADER_BYTES + location.payload_length))
        if not self.files.fill(file, [raw], len(raw), location.offset):
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
        self._durability.flush_index()
        yield from self._index.keys(start, stop)

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        """See :meth:`ShardStore.records`."""
        passed: list[OSError] = []

        def go_past(error: OSError) -> bool:
            passed[:] = [error]
            return True

        start = SEGMENT_HEADER_BYTES
        for number in self._table.numbers():
            file, state = self.files.file(number), self._table.get(number)
            if file is None or state is None:
                continue
            yield from self._records_in(scan_records(file, self._key, start, state.size, go_past=go_past), kinds)
        if passed:
            yield from self._records_by_index(kinds)

    def _records_in(self, scan: Iterator[ScannedRecord | Gap], kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        page: list[Shard] = []
        size, scanned = 0, 0
        for found in scan:
            # What a collect has dropped must not come back for being still on disk.
            if (
                isinstance(found, ScannedRecord)
                and found.intact
                and kind_of(found.header.key) in kinds
                and self._index.get(found.header.key) is not None
            ):
                header = found.header
                page.append(Shard(header.key, header.object_length, header.digest, bytes(found.payload)))
                size += HEADER_BYTES + header.payload_length
            scanned += found.stop - found.offset
            if size >= _PAGE_OF_RECORDS_BYTES or scanned >= _SCANNED_TOGETHER_BYTES:
                yield page
                page, size, scanned = [], 0, 0
        yield page

    def _records_by_index(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        """What a scan may have passed over: the index tells whether the pages that it could not read held anything."""
        unread: list[VolumeUnavailable] = []

        def read(key: ShardKey) -> Shard | None:
            if kind_of(key) not in kinds or self._index.get(key) is None:
                return None
            try:
                return self.read(key)
            except CorruptShard:
                return None
            except VolumeUnavailable as error:
                unread[:] = [error]
                return None

        for keys in batched(self.keys(), _READ_TOGETHER):
            yield [shard for key in keys if (shard := read(key)) is not None]
        if unread:
            raise unread[0]

    def newest(self) -> Shard | None:
        """See :meth:`ShardStore.newest`."""
        known = self._index.newest
        if known is None:
            return None
        sectors = BadSectors(_UNREADABLE_RECORDS_MAX)
        shard = self._read_past(known.key, sectors)
        if shard is not None and is_own(shard.key, shard.payload):
            return shard
        return self._next_newest(known, sectors, is_wrong=shard is not None)

    def _next_newest(self, gone: Newest, sectors: BadSectors, *, is_wrong: bool) -> Shard | None:
        """The newest record of those that can be read, where the newest of all cannot, was removed, or is another."""
        size_before = self._table.bytes_indexed()
        found: tuple[Newest, Shard] | None = None
        for key in self._index.keys(b"", None):
            shard = self._read_past(key, sectors) if bears_sequence(key) else None
            if shard is not None and is_own(key, shard.payload):
                sequence = sequence_in(key, shard.payload)
                if found is None or sequence > found[0].sequence:
                    found = Newest(sequence, key), shard
        if found is None and sectors.last is not None:
            raise self.condition.unreadable(sectors.last) from sectors.last
        with self._lock:
            removed = self._index.get(gone.key) is None and self._index.aside(gone.key) is None
            # What was appended meanwhile may be newer, and was not noted beside one that claims to be later.
            replaceable = removed or (is_wrong and self._table.bytes_indexed() == size_before)
            if replaceable and self._index.newest == gone:
                self._index.newest = None if found is None else found[0]
        return None if found is None else found[1]

    def _read_past(self, key: ShardKey, sectors: BadSectors) -> Shard | None:
        """A shard; None if it is not there, is rotten, or lies in a bad sector."""
        try:
            return self.read(key)
        except CorruptShard:
            return None
        except VolumeUnavailable as error:
            if not isinstance(error.__cause__, OSError) or not sectors.go_past(error.__cause__):
                raise
            return None

    def segment_sizes(self) -> dict[int, int]:
        """Bytes of each segment by its number, in order."""
        return self._table.sizes()

    def damaged_ranges(self, progress: Callable[[int], None], segments: Iterable[int] | None = None) -> DamagedRanges:
        """Read and verify what is stored (in ``segments``, default all); where the bytes are bad, or cannot be read.

        ``progress`` gets bytes read.

        Raises:
            VolumeUnavailable: the disk gives nothing of a segment, or the machine cannot open it.
        """
        bad = DamagedRanges()
        self._durability.flush_index()
        self._index.check()
        self._unread.look_again()
        self._restore_readable()
        for number in sorted(self._table.numbers() if segments is None else segments):
            state = self._table.get(number)
            if state is None:
                continue
            file = self.files.file(number)
            indexed = state.size  # once: what is appended during the scan is none of its business
            size = min(indexed, self.files.length(file)) if file else 0
            if file is not None:
                self._require_answer(file)
                self._scrub_segment(file, number, size, bad, progress)
            if size < indexed and number in self._table:
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
                return Verdict.MISSING if self.read(key) is None else Verdict.GOOD
            except CorruptShard:
                if place is not None and self.discard(key, place):
                    return Verdict.ROTTEN
                if place == self.locate(key):  # otherwise a collect moved it meanwhile
                    return Verdict.UNREADABLE
            except VolumeUnavailable:
                return Verdict.UNREADABLE

    def _require_answer(self, file: VolumeFile) -> None:
        """See that the disk gives a segment's first block: what else it does not give then are bad sectors."""
        self.files.drop_cache(file)
        self.files.fill(file, [memoryview(bytearray(SEGMENT_HEADER_BYTES))], SEGMENT_HEADER_BYTES, 0)

    def _restore_readable(self) -> None:
        """Look again at what was set aside for being unreadable or bad."""
        for key, aside in self._index.all_aside().items():
            if not aside.wrong:
                try:
                    self._restored(key)
                except VolumeUnavailable as error:
                    log.info("shard %s of %s stays set aside: %s", key.hex(), self.path, error)

    def _scrub_segment(
        self, file: VolumeFile, number: int, size: int, bad: DamagedRanges, progress: Callable[[int], None]
    ) -> None:
        for found in scan_records(file, self._key, SEGMENT_HEADER_BYTES, size, go_past=any_page):
            if isinstance(found, Gap) or not found.intact:
                bad.add(number, found.offset, found.stop)
            progress(found.stop - found.offset)

    def holds(self, key: ShardKey, location: Location) -> bool:
        """Whether the record at a location is this shard's, judged by its header.

        Raises:
            VolumeUnavailable: the disk does not give it now.
        """
        file = self.files.file(location.segment)
        raw = memoryview(bytearray(HEADER_BYTES))
        if file is None or not self.files.fill(file, [raw], HEADER_BYTES, location.offset):
            return False
        header = parse_header(raw, self._key)
        return header is not None and header[:3] == (key, location.object_length, location.payload_length)

    def covers(self, segment: int, stop: int) -> bool:
        """Whether a segment is there and reaches to offset ``stop``."""
        return self._table.covers(segment, stop)

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

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """See :meth:`ShardStore.discard`."""
        if not wrong:
            try:
                self._read_at(key, location)
            except CorruptShard:
                pass  # as its reader found it
            else:
                return False
        return self.set_aside(key, location, wrong=wrong)

    def set_aside(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """Let nobody read a record any more, unless the shard has another by now. Its bytes stay, and count as live."""
        with self._lock:
            return self._entries.set_aside(key, location, wrong=wrong)

    def all_aside(self) -> dict[ShardKey, Aside]:
        """All records set aside, by shard."""
        return self._index.all_aside()

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
            return self._read_at(key, location)
        except CorruptShard:
            if self.set_aside(key, location):
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
        for key in self.keys():
            here = self._index.get(key)
            if here is not None and here.segment == number and key not in intact:
                self.set_aside(key, here)
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

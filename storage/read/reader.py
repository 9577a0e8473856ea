"""Reads a version as a seekable file whose every byte is verified."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import NoReturn, TypeVar

from cachetools import LRUCache

from storage.activity import Activity
from storage.budget import Budget
from storage.errors import DataLossError, ShardsUnavailable
from storage.formats.manifest import FAN_OUT, Manifest, RootNode, plain_id, stored_id
from storage.formats.versions import Version
from storage.keys import Kind, StripeKey
from storage.limits import KIB, MIB, BytesLike, sought
from storage.read.places import ChunkPlace
from storage.sealing.objects import OVERHEAD_BYTES
from storage.sealing.user_keys import UserKeys
from storage.stripes.contents import ContentRead, Contents
from storage.stripes.stripes import chunk_stripe
from storage.submitting import submitted
from storage.system.forks import HomeProcess

T = TypeVar("T")

_AHEAD_BYTES = 4 * MIB
_AHEAD_MAX = 4
_LEAVES_CACHED = 4
_BUFFER_BYTES = 64 * KIB  # one fill takes 0.1 ms; larger reads bypass it
_BUFFER_BYTES_MIN = 8 * KIB
_READ_ELSEWHERE_BYTES_PER_S = 100_000_000  # over a link of 1 Gbit/s
AHEAD_BYTES_ALL = 16 * MIB  # read-ahead of all readers together; without a share of it, a reader reads on demand


class _Share:
    """A part of a budget, taken as soon as there is enough, and held from then on."""

    def __init__(self, budget: Budget, count: int) -> None:
        self._budget = budget
        self._count = count
        self._had = False

    def had(self) -> bool:
        """Whether the share is held; tries to take it if not."""
        self._had = self._had or self._budget.try_take(self._count)
        return self._had

    def give_back(self) -> None:
        """Give back the share."""
        if self._had:
            self._budget.give_back(self._count)


class VersionStream(io.RawIOBase):
    """A version's bytes, unbuffered: every read goes to the chunks. Users get a :class:`FileReader`.

    Not thread-safe.
    """

    def __init__(
        self,
        contents: Contents,
        workers: Executor,
        version: Version,
        manifest: Manifest,
        keys: UserKeys | None,
        done: Callable[[], None],
        activity: Activity,
        ahead: Budget,
        patience_s: float,
        clock_s: Callable[[], float],
    ) -> None:
        super().__init__()
        self._home = HomeProcess(f"the reader of {version.filename!r}")
        self._patience_s = patience_s
        self._clock_s = clock_s
        self._ahead_budget = ahead
        self._done = done
        self._activity = activity
        self.version = version
        self._contents = contents
        self._stripes = contents.stripes
        self._keys = keys if manifest.root.is_sealed else None
        self._workers = workers
        self._manifest = manifest
        self._root: RootNode = manifest.root
        self._leaves: LRUCache[int, list[bytes]] = LRUCache(_LEAVES_CACHED)
        self._position = 0
        self._cached: tuple[int, memoryview] | None = None
        self._ahead: dict[int, Future[memoryview]] = {}
        self._last_index = -2
        self._depth = max(1, min(_AHEAD_MAX, _AHEAD_BYTES // self._root.chunk_size))
        self._together = contents.stripes.together(self._root.chunk_size)
        self._lookahead = self._depth if self._together == 1 else self._together

    @property
    def size(self) -> int:
        """Bytes of the version."""
        return self._root.size

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; it may be past the end, where reads return nothing.

        Raises:
            ValueError: see :func:`~storage.limits.sought`.
        """
        self._check_open()
        self._position = sought(offset, whence, self._position, self.size)
        return self._position

    def readinto(self, buffer: BytesLike) -> int:  # type: ignore[override]
        """Fill ``buffer`` from the position on, and return the number of bytes read, 0 at the end.

        If the buffer spans whole chunks, they are read directly into it, several at a time.

        Raises:
            DataLossError: a chunk is lost; the text names file and chunk.
            ShardsUnavailable: too many volumes or workers are out of reach now.
        """
        self._check_open()
        target = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        done = 0
        while done < len(target):
            rest = target[done:]
            whole = self._whole_chunks(len(rest))
            done += self._read_whole(rest, whole) if whole >= 2 else self._read_part(rest)
        return done

    def readall(self) -> bytes:
        """Everything from the position to the end, in memory."""
        self._check_open()
        # A BytesIO returns its buffer as bytes without a copy.
        content = io.BytesIO(bytes(max(0, self.size - self._position)))
        with content.getbuffer() as view:
            self.readinto(view)
        return content.getvalue()

    def read(self, size: int | None = -1) -> bytes:
        """Read up to ``size`` bytes from the position on, by default to the end; b"" at the end."""
        if size is None or size < 0:
            return self.readall()
        self._check_open()
        content = io.BytesIO(bytes(min(size, max(0, self.size - self._position))))
        with content.getbuffer() as view:
            self.readinto(view)
        return content.getvalue()

    def iter_chunks(self, start: int = 0, stop: int | None = None, *, recycled: bool = False) -> Iterator[memoryview]:
        """Bytes start…stop in pieces of at most a chunk, with read-ahead.

        Args:
            start: first byte wanted.
            stop: end of the range; default: the end of the file.
            recycled: each piece is valid only until the next one is requested; its buffer is then reused, which saves
                the system from allocating and clearing memory for every chunk.
        """
        stop = self.size if stop is None else min(stop, self.size)
        if start >= stop:
            return
        ahead = _Share(self._ahead_budget, self._lookahead * self._root.chunk_size)
        try:
            yield from self._pieces(start, stop, ahead, recycled=recycled)
        finally:
            if self._home.is_here:
                ahead.give_back()

    def _pieces(self, start: int, stop: int, ahead: _Share, *, recycled: bool) -> Iterator[memoryview]:
        size = self._root.chunk_size
        first, last = start // size, (stop - 1) // size
        free: list[memoryview] = []
        pending: deque[tuple[list[memoryview], Future[list[memoryview]]]] = deque()
        upcoming = index = first
        while index <= last:
            while upcoming <= min(last, index + (self._lookahead if ahead.had() else 0)):
                count = min(self._together, last + 1 - upcoming)
                buffers = [free.pop() if free else memoryview(bytearray(size)) for _ in range(count)]
                pending.append((buffers, self._submit(self._load_all, self._wanted_in(upcoming, buffers))))
                upcoming += count
            buffers, loading = pending.popleft()
            for buffer, piece in zip(buffers, loading.result(), strict=True):
                yield piece[max(start - index * size, 0) : min(stop - index * size, len(piece))]
                self._home.check()
                index += 1
                if recycled:
                    free.append(buffer)

    def places(self, first: int, count: int, *, look: bool = True) -> list[ChunkPlace]:
        """Where ``count`` chunks from ``first`` on are, and what opens them; for whoever reads them by other means.

        Args:
            first: index of the first one.
            count: how many.
            look: ask stores about chunks of which shards may be elsewhere or nowhere; see
                :meth:`StripeStore.whereabouts`. Otherwise, all shards count as being in their places.
        """
        self._check_open()
        indexes = range(first, min(first + count, self._root.chunk_count))
        self._activity.note(sum(map(self._root.chunk_length, indexes)) / _READ_ELSEWHERE_BYTES_PER_S)
        named = [self._named(index) for index in indexes]
        found: Sequence[tuple[int | None, ...]]
        if look:
            found = self._stripes.whereabouts([stripe for stripe, _ in named])
        else:
            found = [self._stripes.volumes.places(stripe) for stripe, _ in named]
        places: list[ChunkPlace] = []
        for index, (stripe, plain), holders in zip(indexes, named, found, strict=True):
            length = self._root.chunk_length(index)
            if self._keys is None:
                places.append(ChunkPlace(stripe, length, holders, {}))
            else:
                keys = self._keys.openers_by_epoch(Kind.CHUNK, plain)
                places.append(ChunkPlace(stripe, length + OVERHEAD_BYTES, holders, keys))
        return places

    def close(self) -> None:
        """Release the buffers. Reading afterwards raises ValueError."""
        self._cached = None
        self._ahead.clear()
        if self._home.is_here:
            self._done()
        super().close()

    # -- whole chunks straight into the caller's buffer --------------------------------------------

    def _whole_chunks(self, room: int) -> int:
        """How many whole chunks from the position on fit into ``room`` bytes."""
        size = self._root.chunk_size
        if self._position % size:
            return 0
        if self._position + room >= self.size:
            return -(-(self.size - self._position) // size)
        return room // size

    def _read_whole(self, target: memoryview, count: int) -> int:
        first = self._position // self._root.chunk_size
        futures: list[Future[None]] = []
        reads: list[ContentRead] = []
        done = 0
        for index in range(first, first + count):
            length = self._root.chunk_length(index)
            reads.append(self._wanted(index, target[done : done + length]))
            done += length
            if len(reads) == self._together or index == first + count - 1:
                futures.append(self._submit(self._read_all, reads))
                reads = []
        for future in futures:
            future.exception()  # nothing may write to the caller's buffer after an error was raised
        for future in futures:
            future.result()
        self._position += done
        self._last_index = first + count - 1
        return done

    # -- one chunk at a time, reading ahead when the reads are sequential --------------------------

    def _read_part(self, target: memoryview) -> int:
        index, offset = divmod(self._position, self._root.chunk_size)
        length = self._root.chunk_length(index)
        if offset == 0 and len(target) >= length and self._root.chunk_count == 1:
            self._read_all([self._wanted(index, target[:length])])
            self._position += length
            return length
        chunk = self._chunk(index)
        count = min(len(target), length - offset)
        target[:count] = chunk[offset : offset + count]
        self._position += count
        return count

    def _chunk(self, index: int) -> memoryview:
        if self._cached is not None and self._cached[0] == index:
            return self._cached[1]
        sequential = index == self._last_index + 1
        self._last_index = index
        future = self._ahead.pop(index, None)
        if not sequential:
            self._ahead.clear()
        else:
            self._read_ahead(index + 1)
        chunk = future.result() if future is not None else self._load(self._wanted(index))
        self._cached = (index, chunk)
        return chunk

    def _read_ahead(self, first: int) -> None:
        for index in range(first, min(first + self._depth, self._root.chunk_count)):
            if index not in self._ahead:
                self._ahead[index] = self._submit(self._load, self._wanted(index))

    def _load(self, wanted: ContentRead) -> memoryview:
        self._read_all([wanted])
        return wanted.target

    def _wanted_in(self, first: int, buffers: list[memoryview]) -> list[ContentRead]:
        """The chunks from ``first`` on, each with space in one of the buffers."""
        return [
            self._wanted(index, buffer[: self._root.chunk_length(index)]) for index, buffer in enumerate(buffers, first)
        ]

    def _load_all(self, reads: list[ContentRead]) -> list[memoryview]:
        self._read_all(reads)
        return [read.target for read in reads]

    def _read_all(self, reads: list[ContentRead]) -> None:
        self._activity.note()
        volumes, give_up_s = self._stripes.volumes, self._clock_s() + 2 * self._patience_s
        while True:
            epoch = volumes.epoch()
            try:
                return self._contents.read_all(reads)
            except ShardsUnavailable as error:
                waits = self._clock_s() < give_up_s
                if not waits or not volumes.await_change(epoch, self._patience_s):
                    self._fail(error)
            except DataLossError as error:
                self._fail(error)

    def _fail(self, error: DataLossError | ShardsUnavailable) -> NoReturn:
        """Add the file to the error of a chunk that cannot be read."""
        if isinstance(error, ShardsUnavailable):
            raise ShardsUnavailable(
                error.chunk,
                error.found,
                error.needed,
                away=error.away,
                causes=error.causes,
                filename=self.version.filename,
                file_id=self.version.file_id,
            ) from error
        raise DataLossError(
            error.chunk,
            error.found,
            error.needed,
            filename=self.version.filename,
            file_id=self.version.file_id,
        ) from error

    def _submit(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        self._home.check()
        return submitted("the store was closed while a file was being read", self._workers, work, *arguments)

    def _wanted(self, index: int, target: memoryview | None = None) -> ContentRead:
        """A read of a chunk, into new memory by default."""
        stripe, plain = self._named(index)
        target = memoryview(bytearray(self._root.chunk_length(index))) if target is None else target
        return ContentRead(stripe, plain, self._keys, target)

    def _named(self, index: int) -> tuple[StripeKey, bytes]:
        """The stripe of a chunk, and the hash of its content. Its reference is from the most recently read leaves."""
        leaf, position = divmod(index, FAN_OUT)
        references = self._leaves.get(leaf)
        if references is None:
            start = leaf * FAN_OUT
            references = self._leaves[leaf] = list(self._manifest.references(start, start + FAN_OUT))
        return chunk_stripe(stored_id(references[position]), self._root.profile), plain_id(references[position])

    def _check_open(self) -> None:
        self._home.check()
        if self.closed:
            raise ValueError("the file is closed")


class FileReader(io.BufferedReader):
    """A version's content as a seekable binary stream; it keeps reading this version even if the file changes.

    It supports what a file opened with ``open(path, "rb")`` does: ``peek``, lines, wrapping in ``io.TextIOWrapper``.
    Large reads bypass its buffer and go directly into the result. Not thread-safe; open one per thread.

    Raises:
        DataLossError: (from reads) a chunk is lost; the text names file and chunk.
        InsufficientWorkers: (from reads) too many of a pool's workers are away now.
    """

    def __init__(self, stream: VersionStream) -> None:
        super().__init__(stream, buffer_size=_BUFFER_BYTES if stream.size > _BUFFER_BYTES_MIN else _BUFFER_BYTES_MIN)
        self._stream = stream

    @property
    def version(self) -> Version:
        """The version read."""
        return self._stream.version

    @property
    def size(self) -> int:
        """Bytes of the version."""
        return self._stream.size

    def readall(self) -> bytes:
        """Everything from the position to the end, in memory."""
        return self.read()

    def places(self, first: int, count: int, *, look: bool = True) -> list[ChunkPlace]:
        """See :meth:`VersionStream.places`."""
        return self._stream.places(first, count, look=look)

    def iter_chunks(self, start: int = 0, stop: int | None = None, *, recycled: bool = False) -> Iterator[memoryview]:
        """See :meth:`VersionStream.iter_chunks`; it is independent of the position."""
        return self._stream.iter_chunks(start, stop, recycled=recycled)

"""Fetches ranges of a version from workers, chunk by chunk, with the rest from the pool once that does not work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple, Self

from storage import Version
from storage.errors import StorageError, StoreClosed, StoreUnavailable
from storage.progress import Progress
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline, retried
from taskworker.client.direct.fleet import Entered
from taskworker.client.direct.memory import SHARED
from taskworker.client.direct.page import Page, page_of
from taskworker.client.direct.reader import Reader
from taskworker.client.direct.reads import DirectReads
from taskworker.client.fetching import Fetch, Fetched, Wanted
from taskworker.client.scope import CallScope, current_scope
from taskworker.errors import CallAbandoned, CallNotOffered, DeadlineExceeded, ServerFault, StorageUnavailable
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import version_from_proto

_BATCHES_AHEAD = 2  # besides the one that is waited for
_RENEWED_S = 60.0  # a page is asked for again so long before its ticket expires

# The file may be read from workers another time.
_PASSING = (StorageUnavailable, StoreUnavailable, StoreClosed, DeadlineExceeded, CallAbandoned)

Place = Callable[[int, int], memoryview]
"""Returns memory for bytes of the range: where they begin, and how many they are."""


Room = Callable[[int, int], int]
"""Returns how many bytes there is memory for: at most, and at least for a chunk; 0: not before some is free."""


class _Batch(NamedTuple):
    """Chunks that are read together.

    Attributes:
        start: where their wanted bytes begin in the range.
        memory: for these bytes.
        cut: of chunks of which only a part is wanted, this part, and the memory for it.
        reading: ends when they were read.
    """

    start: int
    memory: memoryview
    cut: list[tuple[memoryview, memoryview]]
    reading: Future[None]

    def content(self) -> memoryview:
        """Return it, once it was read.

        Raises:
            StorageError: it could not be read.
        """
        self.reading.result()
        for content, place in self.cut:
            place[:] = content
        return self.memory


class _Located(NamedTuple):
    """A page, and until when to begin reads with it: long enough before its ticket expires."""

    page: Page
    until_s: float

    @classmethod
    def since(cls, page: Page, asked_s: float) -> _Located:
        """What was asked for at a time, so that its ticket is no older."""
        return cls(page, asked_s + max(page.valid_s - _RENEWED_S, page.valid_s / 2))


class DirectFetch:
    """See :class:`taskworker.client.fetching.Fetched`.

    Args:
        reads: reads chunks.
        channel: the connection to the pool.
        wanted: the range.
        version: the version, which the pool said that it is of.
        page: its first chunks.
        deadline: for all of it.
        retries: how often reads from the pool are retried.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        reads: DirectReads,
        channel: Channel,
        wanted: Wanted,
        version: Version,
        page: Page,
        deadline: Deadline,
        retries: int,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reads = reads
        self._channel = channel
        self._wanted = wanted
        self._deadline = deadline
        self._retries = retries
        self._clock_s = clock_s
        self.version = version
        self._stop = wanted.stop_in(version.size)
        self.size = self._stop - wanted.offset
        self._done = 0
        self._cancelled = False
        self._reader = Reader(deadline, clock_s)
        self._next: _Located | None = _Located.since(page, clock_s())
        self._asked: Future[_Located | None] | None = None
        self._rest: Fetched | None = None

    def __iter__(self) -> Iterator[memoryview]:
        """Yield the bytes. Each piece is valid until the next one is asked for."""
        with SHARED.used() as memory:
            for piece, is_placed in self._pieces(lambda _start, length: memory.lend(length), memory.room):
                yield piece
                if is_placed:
                    memory.take_back()

    def fill(self, target: memoryview, progress: Progress | None) -> int:
        """Write all bytes to the caller's memory; return how many there are."""
        done = 0
        for piece, is_placed in self._pieces(
            lambda start, length: target[start : start + length], lambda most, _: most
        ):
            if not is_placed:
                target[done : done + len(piece)] = piece
            done += len(piece)
            if progress is not None:
                progress(done, self.size)
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the rest."""
        self.cancel()
        if self._rest is not None:
            self._rest.close()

    def cancel(self) -> None:
        """See :class:`taskworker.client.scope.CallScope`."""
        self._cancelled = True
        self._reader.give_up()

    # -- pieces, in order ------------------------------------------------------------------------

    def _pieces(self, place: Place, room: Room) -> Iterator[tuple[memoryview, bool]]:
        """The bytes in order, and whether they are in the memory that was given for them."""
        with self._noting_failures():
            for piece in self._from_workers(place, room):
                yield piece, True
        if self._done == self.size:
            self._reads.note_worked(self.version.file_id)
            return
        self._check()
        version, offset = self.version, self._wanted.offset + self._done
        left = Wanted(version.file_id, self._wanted.user_id, version.version_id, offset, self.size - self._done)
        self._rest = rest = Fetch(self._channel, left, deadline=self._deadline, retries=self._retries)
        with rest:
            for piece in rest:
                yield piece, False

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        """A context that ends early with whatever fails: the pool can do without, or knows better what it is."""
        try:
            yield
        except StorageError as error:
            if not isinstance(error, _PASSING):
                self._reads.note_failed(self.version.file_id)

    def _from_workers(self, place: Place, room: Room) -> Iterator[memoryview]:
        under_way: deque[_Batch] = deque()
        try:
            for batch in self._batches(place, room):
                if batch is not None:
                    under_way.append(batch)
                if batch is None or len(under_way) > _BATCHES_AHEAD:
                    yield self._ended(under_way)
            while under_way:
                yield self._ended(under_way)
        finally:
            self._reader.give_up()
            # Nothing is written to the caller's memory after this. Those that have not begun never will.
            wait([batch.reading for batch in under_way if not batch.reading.cancel()])

    def _ended(self, under_way: deque[_Batch]) -> memoryview:
        self._check()
        self._await_all([under_way[0].reading])
        content = under_way.popleft().content()
        self._done += len(content)
        return content

    def _await_all(self, futures: Collection[Future[Any]], within_s: float | None = None) -> None:
        """Wait until they have ended, or for so long.

        Raises:
            DeadlineExceeded, CallAbandoned: the deadline came before, or the get was cancelled.
        """
        scope = current_scope.get()
        with nullcontext() if scope is None else scope.holding(self):
            self._reader.await_all(futures, within_s)
        if not all(future.done() for future in futures):
            self._check()

    def _check(self) -> None:
        self._deadline.remaining_s()
        if self._cancelled:
            raise CallAbandoned("the call was cancelled")

    def _batches(self, place: Place, room: Room) -> Iterator[_Batch | None]:
        """Begin to read all chunks; ends early, and notes why, where that is not possible.

        Yields None where an earlier batch has to end before there is room for another one.
        """
        size, offset = self.version.chunk_size, self._wanted.offset
        index, last = offset // size, (self._stop - 1) // size
        together = self._reads.together(size)
        while index <= last:
            located = self._page_from(index)
            if located is None:
                self._reads.note_failed(self.version.file_id)
                return
            page = located.page
            entered = self._reads.fleet.enter(page, self._await_all)
            if entered is None:
                self._note_unreached(page)
                return
            end = min(page.first + len(page.stripes) - 1, last)
            if end < last:
                self._asked = self._reads.submit(self._locate, end + 1, self._reader.scope)
            while index <= end and self._clock_s() < located.until_s:
                count = min(together, end + 1 - index)
                count = min(count, room(count * size, size) // size)
                yield self._begin(entered, index, count, place) if count else None
                index += count

    def _note_unreached(self, page: Page) -> None:
        """Note that too few workers are reached: if it is none at all, this client is likely to reach no others."""
        if self._reads.fleet.reaches_any(page):
            self._reads.note_failed(self.version.file_id)
        else:
            self._reads.note_pool_failed()

    def _part(self, index: int) -> Wanted:
        """The rest of the range from a chunk on."""
        version, start = self.version, max(index * self.version.chunk_size, self._wanted.offset)
        return Wanted(version.file_id, self._wanted.user_id, version.version_id, start, self._stop - start)

    def _page_from(self, index: int) -> _Located | None:
        """The page that begins with a chunk; None: the pool has none."""
        located, self._next = self._next, None
        if located is None and self._asked is not None:
            asked, self._asked = self._asked, None
            self._await_all([asked])
            located = asked.result()
            if located is None:
                return None
        if located is None or located.page.first != index or located.until_s <= self._clock_s():
            located = self._locate(index)  # as the former one's time was over, or that of one that was fetched ahead
        return located

    def _locate(self, index: int, scope: CallScope | None = None) -> _Located | None:
        asked_s = self._clock_s()
        page = locate_page(self._channel, self._part(index), self._deadline, scope)
        return None if page is None else _Located.since(page, asked_s)

    def _begin(self, entered: Entered, index: int, count: int, place: Place) -> _Batch:
        size, offset = self.version.chunk_size, self._wanted.offset
        start, stop = max(index * size, offset), min((index + count) * size, self._stop)
        memory = place(start - offset, stop - start)
        targets: list[memoryview] = []
        cut: list[tuple[memoryview, memoryview]] = []
        for at in range(index, index + count):
            begin, end = at * size, min((at + 1) * size, self.version.size)
            first, last = max(begin, start), min(end, stop)
            part = memory[first - start : last - start]
            if (first, last) == (begin, end):
                targets.append(part)
                continue
            content = memoryview(bytearray(end - begin))
            targets.append(content)
            cut.append((content[first - begin : last - begin], part))
        reading = self._reads.submit(self._reads.read, self._reader, entered, index - entered.page.first, targets)
        return _Batch(start - offset, memory, cut, reading)


def fetch_directly(
    reads: DirectReads, channel: Channel, wanted: Wanted, deadline: Deadline, retries: int, bytes_min: int
) -> tuple[DirectFetch | None, str]:
    """Begin to fetch a range of at least ``bytes_min`` bytes from workers.

    Returns:
        None if it is to be fetched from the pool; and the id of the version, as far as it is known.

    Raises:
        StorageError: the pool refuses; as when the range is fetched from it.
    """
    try:
        response = retried(lambda: _located(channel, wanted, deadline), deadline, retries)
    except CallNotOffered:  # an older pool, or one that offers no direct reads
        reads.never()
        return None, wanted.version_id or ""
    except ServerFault:
        reads.note_failed(wanted.file_id)
        return None, wanted.version_id or ""
    version = version_from_proto(response.version)
    if response.all_absent:
        reads.note_pool_failed()
        return None, version.version_id
    if wanted.stop_in(version.size) - wanted.offset < bytes_min:
        return None, version.version_id
    if not response.HasField("page"):
        reads.note_failed(version.file_id)
        return None, version.version_id
    try:
        page = page_of(response.page, version, wanted.offset)
    except ServerFault:
        reads.note_pool_failed()
        return None, version.version_id
    return DirectFetch(reads, channel, wanted, version, page, deadline, retries), version.version_id


def locate_page(channel: Channel, wanted: Wanted, deadline: Deadline, scope: CallScope | None = None) -> Page | None:
    """The page that begins with the first chunk of a range; None: the pool has none. ``scope`` can cancel the call."""
    response = _located(channel, wanted, deadline, scope)
    if not response.HasField("page"):
        return None
    return page_of(response.page, version_from_proto(response.version), wanted.offset)


def _located(
    channel: Channel, wanted: Wanted, deadline: Deadline, scope: CallScope | None = None
) -> store_pb2.LocateShardsResponse:
    request = store_pb2.LocateShardsRequest(
        file_id=wanted.file_id,
        user_id=wanted.user_id,
        version_id=wanted.version_id or "",
        offset=wanted.offset,
        length=wanted.length,
    )
    return channel.unary(channel.store.LocateShards, request, deadline, scope)

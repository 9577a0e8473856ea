"""The messages of a push whose chunks the client writes to workers itself; the pool gets what they do not take."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from blake3 import blake3

from storage.errors import InvalidArgument, StorageError
from storage.limits import MIB, BytesLike
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.client.direct.places import ChunkKey, places_of, preparation_of
from taskworker.client.direct.writes import DirectWrites
from taskworker.client.scope import CallScope
from taskworker.client.sources import SeekableSource
from taskworker.errors import CallAbandoned, CallNotOffered, DeadlineExceeded
from taskworker.protos import store_pb2

_PAGE_BYTES = 8 * MIB  # a few of them are in memory, each with its encrypted and coded form
_PAGE_CHUNKS_MAX = 64
_CHUNK_BYTES_MIN = 64 * 1024  # with smaller ones, pages are so small that pushing through the pool is as fast


class PushOf(NamedTuple):
    """A push under way: its owner, the id by which the pool knows it, and the size of its chunks in bytes."""

    user_id: str
    push_id: bytes
    chunk_size: int


class Piece(NamedTuple):
    """The next chunks of a push: those that workers have, by the ids of what is stored; or the bytes of one.

    ``size`` is how many bytes of the file they are.
    """

    written: list[bytes]
    data: BytesLike
    size: int


class DirectPush:
    """Writes the rest of a source to workers.

    Args:
        writes: writes chunks.
        channel: the connection to the pool.
        push: the push, which has begun.
        source: what to push.
        deadline: for all of it.
        scope: calls of the push in other threads, which can be cancelled.
    """

    def __init__(
        self,
        writes: DirectWrites,
        channel: Channel,
        push: PushOf,
        source: SeekableSource,
        deadline: Deadline,
        scope: CallScope,
    ) -> None:
        self._writes = writes
        self._channel = channel
        self._push = push
        self._source = source
        self._deadline = deadline
        self._scope = scope
        self._given_up = threading.Event()
        self._unwanted = threading.Event()  # the pool wants the rest itself; what is under way goes on

    def pieces(self, offset: int) -> Generator[Piece, None, None]:
        """Write from an offset on, at a chunk's end; yield what was done, in order.

        Ends early if workers do not take chunks: the rest is for the pool.
        """
        with self._scope.holding(self):
            yield from self._pieces(offset)

    def cancel(self) -> None:
        """See :class:`CallScope`."""
        self._given_up.set()

    def _pieces(self, offset: int) -> Iterator[Piece]:
        under_way: deque[tuple[list[BytesLike], Future[list[bytes | None]]]] = deque()
        try:
            while offset < self._source.size and not self._is_over():
                contents = self._read(offset)
                offset += sum(map(len, contents))
                under_way.append((contents, self._writes.submit(self._written, contents)))
                if len(under_way) >= self._writes.together:
                    yield from self._ended(*under_way.popleft())
            while under_way:
                yield from self._ended(*under_way.popleft())
        finally:
            self._given_up.set()
            for _, writing in under_way:
                writing.cancel()

    def _is_over(self) -> bool:
        return self._given_up.is_set() or self._unwanted.is_set() or not self._writes.may_write()

    def _read(self, offset: int) -> list[BytesLike]:
        """The contents of the next page."""
        size = self._push.chunk_size
        count = min(_PAGE_CHUNKS_MAX, max(1, _PAGE_BYTES // size))
        starts = range(offset, min(offset + count * size, self._source.size), size)
        return [self._source.read(start, min(size, self._source.size - start)) for start in starts]

    def _ended(self, contents: list[BytesLike], writing: Future[list[bytes | None]]) -> Iterator[Piece]:
        written: list[bytes] = []
        size = 0
        for content, stored_id in zip(contents, writing.result(), strict=True):
            if stored_id is not None:
                written.append(stored_id)
                size += len(content)
                continue
            if written:
                yield Piece(written, b"", size)
                written, size = [], 0
            yield Piece([], content, len(content))
        if written:
            yield Piece(written, b"", size)

    # -- in threads of the client ----------------------------------------------------------------

    def _written(self, contents: Sequence[BytesLike]) -> list[bytes | None]:
        """Write chunks; return the id of what is stored of each, or None for those that the pool gets.

        Raises:
            DeadlineExceeded, CallAbandoned: the push has no time left, or was cancelled.
        """
        nothing: list[bytes | None] = [None] * len(contents)
        if self._is_over():
            return nothing
        try:
            found = self._write(contents)
        except (DeadlineExceeded, CallAbandoned):
            raise
        except InvalidArgument:  # the pool takes this push by itself only, such as one to a share
            found = None
        except CallNotOffered:
            self._writes.never()
            found = nothing
        except StorageError:  # the pool can do without, or knows better what it is
            found = nothing
        if found is None:  # which says nothing about other pushes
            self._unwanted.set()
            return nothing
        if not any(found):
            self._given_up.set()
            self._writes.note_failed()
        return found

    def _write(self, contents: Sequence[BytesLike]) -> list[bytes | None] | None:
        """See :meth:`_written`; None if the pool says that all of them are to be sent to it."""
        store, push = self._channel.store, self._push
        plain_ids = [blake3(content).digest() for content in contents]
        prepare = store_pb2.PrepareChunksRequest(
            user_id=push.user_id, push_id=push.push_id, plain_ids=b"".join(plain_ids)
        )
        prepared = preparation_of(
            self._channel.unary(store.PrepareChunks, prepare, self._deadline, self._scope), len(contents)
        )
        keys = [ChunkKey(prepared.epoch, key) for key in prepared.keys]
        chunks = self._writes.sealed(contents, plain_ids, keys, prepared.profile)
        place = store_pb2.PlaceChunksRequest(
            user_id=push.user_id,
            push_id=push.push_id,
            chunks=[
                store_pb2.ClientChunk(
                    plain_id=plain_id, stored_id=chunk.stored_id, length=len(content), hashes=chunk.hashes
                )
                for content, plain_id, chunk in zip(contents, plain_ids, chunks, strict=True)
            ],
        )
        places = places_of(
            self._channel.unary(store.PlaceChunks, place, self._deadline, self._scope), len(chunks), prepared.profile.n
        )
        if not places.ticket:
            return None
        self._writes.write(places, chunks, self._given_up.is_set)
        # Also those that are not known to be there, so that the pool need not wait for them.
        placed = [None if row is None else chunk.stored_id for chunk, row in zip(chunks, places.placed, strict=True)]
        there = [one for one in placed if one is not None]
        settle = store_pb2.SettleChunksRequest(user_id=push.user_id, push_id=push.push_id, stored_ids=b"".join(there))
        answer = self._channel.unary(store.SettleChunks, settle, self._deadline, self._scope)
        settled = {one for one, is_there in zip(there, answer.written, strict=True) if is_there}
        # Of equal chunks, one is placed and named; the others are sent to the pool, which has them then.
        return [one if one in settled else None for one in placed]


def is_worthwhile(source: SeekableSource, done: int, chunk_size: int) -> bool:
    """Whether to write the rest of a source to workers."""
    return source.size - done >= _PAGE_BYTES and chunk_size >= _CHUNK_BYTES_MIN

"""Chunks of an upload on their way to the volumes.

A few worker threads hash, seal, encode and append them. They are accepted in the order in which they were submitted.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from storage.limits import MIB
from storage.submitting import submitted
from storage.write.chunks import AcceptedChunk, passing_chunk, suffix_of
from storage.write.context import PushContext
from storage.write.known import is_new
from storage.write.padding import padded_in_place
from storage.write.quotas import Taken
from storage.write.sources import read_exactly
from storage.write.target import PushTarget
from storage.write.unverified import vouch_for_put

log = logging.getLogger(__name__)

_IN_FLIGHT_BYTES = 8 * MIB
_IN_FLIGHT_MAX = 6


class ChunkPipeline:
    """The chunks of one upload that are being stored. Not thread-safe.

    A stored chunk's stripe is pinned; whoever accepts it unpins it.

    Args:
        context: parts of the store.
        target: what the upload writes to.
        taken: counts the stored bytes for the user's quota.
        accept: is called with each stored chunk, in order, by the thread that submits or drains.
    """

    def __init__(
        self, context: PushContext, target: PushTarget, taken: Taken, accept: Callable[[AcceptedChunk], None]
    ) -> None:
        self._context = context
        self._profile = target.profile
        self._user = target.user
        self._epoch = target.epoch
        self._key = target.key
        self._taken = taken
        self._accept = accept
        self._suffix = suffix_of(target.profile)
        self._depth = max(2, min(_IN_FLIGHT_MAX, _IN_FLIGHT_BYTES // target.chunk_size))
        self._free: list[bytearray] = []
        self._in_flight: deque[Future[AcceptedChunk]] = deque()
        self.buffer_bytes = target.profile.k * target.profile.shard_length(target.chunk_size)
        """Size of a buffer in bytes: a chunk, zero-padded to k whole shards."""

    @property
    def is_empty(self) -> bool:
        """Whether every chunk that was submitted has been accepted."""
        return not self._in_flight

    def take_buffer(self) -> bytearray:
        """Return memory for one chunk, of ``buffer_bytes``. Its content is undefined."""
        try:
            return self._free.pop()
        except IndexError:  # checking before would race with other threads
            return bytearray(self.buffer_bytes)

    def store(self, content: memoryview) -> None:
        """Store a chunk that needs no padding. Its bytes must not change before it is accepted."""
        self._submit(self._store, content, len(content), None)

    def store_buffer(self, buffer: bytearray, length: int) -> None:
        """Store the first bytes of a buffer from :meth:`take_buffer`, and take the buffer back."""
        self._submit(self._store, padded_in_place(buffer, length, self._profile.k), length, buffer)

    def store_range(self, fd: int, offset: int, length: int) -> None:
        """Read a chunk from a regular file, which must stay open until the chunk is accepted, and store it."""
        self._submit(self._read, fd, offset, length)

    def drain(self, most: int = 0) -> None:
        """Accept finished chunks, in order, until at most ``most`` are in flight."""
        while len(self._in_flight) > most:
            try:
                chunk = self._in_flight[0].result()  # if this is interrupted, the chunk stays in flight
            except Exception:
                self._in_flight.popleft()
                raise
            self._in_flight.popleft()
            self._accept(chunk)

    def give_up(self) -> list[AcceptedChunk]:
        """Wait for the chunks in flight without accepting them; return those that were stored."""
        stored = []
        while self._in_flight:
            try:
                stored.append(self._in_flight[0].result())
            except Exception as error:
                log.debug("a chunk of an aborted upload failed: %s", error)
            self._in_flight.popleft()
        return stored

    def free(self) -> None:
        """Give up the buffers that wait for their next chunk."""
        self._free = []

    def _submit(self, work: Callable[..., AcceptedChunk], *arguments: object) -> None:
        self.drain(self._depth - 1)
        budget = self._context.in_flight
        budget.take(self.buffer_bytes)
        try:
            future = submitted("the store was closed during the push", self._context.workers, work, *arguments)
        except BaseException:
            budget.give_back(self.buffer_bytes)
            raise
        future.add_done_callback(lambda _: budget.give_back(self.buffer_bytes))
        self._in_flight.append(future)

    # -- in worker threads -----------------------------------------------------------------------

    def _read(self, fd: int, offset: int, length: int) -> AcceptedChunk:
        buffer = self.take_buffer()
        read_exactly(fd, offset, memoryview(buffer)[:length])
        return self._store(padded_in_place(buffer, length, self._profile.k), length, buffer)

    def _store(self, content: memoryview, length: int, buffer: bytearray | None) -> AcceptedChunk:
        """Hash, seal if need be, and store one chunk unless it is there already."""
        context = self._context
        chunk = passing_chunk(self._key, self._suffix, content, length, context.scratch)
        stripe, data = chunk.stripe, chunk.data
        context.activity.note()
        self._taken.add(length, stripe)
        context.pins.pin(stripe)
        try:
            if is_new(context, stripe):
                context.stripes.put(stripe, data, chunk.length)
                if context.stripes.volumes.remote and context.catalog.unverified(stripe):
                    vouch_for_put(context, self._user, stripe)
            elif context.stripes.absent_slots(stripe):
                context.stripes.put_absent(stripe, data, chunk.length)
            elif not context.stripes.is_sound(stripe, chunk.length):
                context.stripes.put_unsound(stripe, data, chunk.length)
            context.stripes.volumes.require_taken(self._profile, self._epoch)
        except BaseException:
            context.pins.unpin([stripe])
            raise
        if buffer is not None:
            self._free.append(buffer)
        return AcceptedChunk(stripe, chunk.plain_id, length)

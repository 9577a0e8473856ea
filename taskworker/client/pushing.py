"""Pushes through PushStream: a small file in one message, a large one without chunks that the server has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from storage import Version
from storage.errors import InvalidArgument, StorageError
from storage.limits import MIB, BytesLike
from storage.options import PushOptions
from storage.progress import Progress
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.client.scope import CallScope, current_scope
from taskworker.client.sending import OutgoingMessages
from taskworker.client.sources import SeekableSource, Source
from taskworker.errors import CallNotOffered, ServerBusy, StorageUnavailable
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import profile_to_proto, push_commit, push_header, version_from_proto
from taskworker.rpc.data_frames import data_frame
from taskworker.rpc.limits import CHUNK_IDS_MAX, PUSH_DATA_BYTES

if TYPE_CHECKING:
    from taskworker.client.direct.writes import DirectWrites

_TOGETHER_BYTES_MAX = PUSH_DATA_BYTES // 2  # a file up to this size travels in one message

# Asking which chunks the server has costs hashing and a round trip, which pays off only if it has some. So a push
# first asks about a few, then about more as long as the answers save sending, and stops asking once they do not.
_PROBE_CHUNKS_MIN = 8
_PROBE_CHUNKS_MAX = min(1024, CHUNK_IDS_MAX)
_PROBE_GROWTH = 4
DIRECT_BYTES_MIN = 8 * MIB
"""Less than this is pushed through the server as quickly."""
_PUSH_ID_BYTES = 16
_DESCRIBED_AGAIN_S = 60.0

GiveWrites = Callable[[], "DirectWrites | None"]


class _Direct(NamedTuple):
    """What writes chunks to workers, the id of the push, and the size of its chunks in bytes."""

    writes: DirectWrites
    push_id: bytes
    chunk_size: int


def push(
    channel: Channel,
    source: Source,
    options: PushOptions,
    *,
    deadline: Deadline,
    retries: int,
    progress: Progress | None = None,
    writes: GiveWrites | None = None,
) -> Version:
    """Push ``source``; retry an interrupted push if that cannot store it twice.

    Args:
        channel: the connection to the server.
        source: what to push.
        options: of the push.
        deadline: for all of it.
        retries: how often to retry.
        progress: called with the bytes done, and all of them or 0.
        writes: gives what writes to a pool's workers, if that is worth a try; None: all goes through the server.
    """
    attempt = 0
    if isinstance(source, SeekableSource) and source.size <= _TOGETHER_BYTES_MAX and channel.has_small_calls:
        try:
            return _push_small(channel, source, options, deadline, retries, progress)
        except CallNotOffered:  # an older server
            channel.has_small_calls = False
    while True:
        try:
            with _own_scope():
                messages = OutgoingMessages(_Push(channel, source, options, deadline, progress, writes).messages())
                response = channel.push(messages, deadline)
            return version_from_proto(response.version, unchanged=response.unchanged)
        except StorageUnavailable as error:
            attempt += 1
            if attempt > retries or not _may_repeat(source, error, committed=messages.last_sent):
                raise
        deadline.back_off(attempt)


@contextmanager
def _own_scope() -> Iterator[None]:
    """A context whose calls in all threads are cancelled if it ends with an error, such as that the time ran out."""
    outer, own = current_scope.get(), CallScope()
    token = current_scope.set(own)
    try:
        with nullcontext() if outer is None else outer.holding(own):
            yield
    except BaseException:
        own.cancel()
        raise
    finally:
        current_scope.reset(token)


def _push_small(
    channel: Channel,
    source: SeekableSource,
    options: PushOptions,
    deadline: Deadline,
    retries: int,
    progress: Progress | None,
) -> Version:
    """Push content in one message. A server that refused the call did nothing, so it is asked again."""
    part = store_pb2.PushPart(
        header=push_header(options, size_hint=source.size),
        data=bytes(source.read(0, source.size)),
        commit=push_commit(options, source.size),
    )
    attempt = 0
    while True:
        try:
            response = channel.unary(channel.store.PushFile, part, deadline)
        except ServerBusy:
            attempt += 1
            if attempt > retries:
                raise
            deadline.back_off(attempt)
            continue
        if progress is not None and source.size:
            progress(source.size, source.size)
        return version_from_proto(response.version, unchanged=response.unchanged)


def push_messages(channel: Channel, source: Source, options: PushOptions, deadline: Deadline) -> Iterator[bytes]:
    """The messages of a push, in wire form, for one attempt."""
    return _Push(channel, source, options, deadline, None).messages()


def require_conditions(channel: Channel, options: PushOptions, deadline: Deadline) -> None:
    """Check that the server knows the conditions of a push, if there are any: an older one would ignore them.

    Raises:
        CallNotOffered: it does not.
    """
    if (options.if_absent or options.if_head is not None) and not channel.describe(deadline).has_conditions:
        raise CallNotOffered(f"the server at {channel.address} is of a release without conditions; upgrade it")


def require_no_attributes(attributes: object) -> None:
    """Check that no attributes are given, which a client with its user's own key does not seal.

    Raises:
        InvalidArgument: some are.
    """
    if attributes is not None:
        raise InvalidArgument("attributes cannot be sealed with a key of one's own; leave them out")


def _may_repeat(source: Source, error: StorageError, *, committed: bool) -> bool:
    if not isinstance(source, SeekableSource):
        return False  # the part that was read cannot be read again
    # A server that refused the call did nothing. A server that vanished after the commit message was sent may
    # have committed; a repeated push could then undo what another client pushed since.
    return isinstance(error, ServerBusy) or not committed


class _Push:
    """The messages of one attempt."""

    def __init__(
        self,
        channel: Channel,
        source: Source,
        options: PushOptions,
        deadline: Deadline,
        progress: Progress | None,
        writes: GiveWrites | None = None,
    ) -> None:
        self._give_writes = writes
        self._channel = channel
        self._source = source
        self._options = options
        self._deadline = deadline
        self._progress = progress
        self._total = source.size if isinstance(source, SeekableSource) else 0
        self._done = 0
        # gRPC's thread makes the messages, where ``current_scope`` is not set.
        self._scope: CallScope | None = current_scope.get()

    def messages(self) -> Iterator[bytes]:
        """All messages, in wire form."""
        source = self._source
        direct = self._direct(source) if isinstance(source, SeekableSource) else None
        header = push_header(self._options, size_hint=self._total)
        if direct is not None:  # the server may have another chunk size than when it was asked
            header.push_id, header.chunk_size = direct.push_id, direct.chunk_size
        if isinstance(source, SeekableSource) and source.size <= _TOGETHER_BYTES_MAX:
            data = source.read(0, source.size)
            yield self._last(store_pb2.PushPart(header=header, data=bytes(data)), size=source.size)
            return
        yield store_pb2.PushPart(header=header).SerializeToString()
        if isinstance(source, SeekableSource):
            yield from self._known_chunks(source)
            if direct is not None:
                yield store_pb2.PushPart().SerializeToString()  # a message is sent once the next one is known
                yield from self._written_chunks(source, direct)
            for block in source.blocks(self._done):
                yield self._data(block)
        else:
            for pieces in source.gathered():
                yield self._data(*pieces)
        yield self._last(store_pb2.PushPart(), size=self._done)

    def _direct(self, source: SeekableSource) -> _Direct | None:
        """How to write chunks to workers; None: all goes through the server."""
        options = self._options
        if self._give_writes is None or source.size < DIRECT_BYTES_MIN or options.sha256:
            return None  # of content with a SHA-256, the server hashes all
        writes = self._give_writes()
        if writes is None:
            return None
        described = self._channel.describe(self._deadline, self._scope)
        if not described.has_direct_pushes:  # maybe no worker had joined yet
            described = self._channel.describe(self._deadline, self._scope, age_s_max=_DESCRIBED_AGAIN_S)
        if not described.has_direct_pushes:
            return None
        return _Direct(writes, os.urandom(_PUSH_ID_BYTES), options.chunk_size or described.chunk_size)

    def _written_chunks(self, source: SeekableSource, direct: _Direct) -> Iterator[bytes]:
        """Messages for the chunks from here on, as far as workers take them."""
        from taskworker.client.direct.push import DirectPush, PushOf, is_worthwhile  # only for large files

        if not is_worthwhile(source, self._done, direct.chunk_size):
            return
        push = PushOf(self._options.user_id, direct.push_id, direct.chunk_size)
        scope = self._scope or CallScope()
        pieces = DirectPush(direct.writes, self._channel, push, source, self._deadline, scope).pieces(self._done)
        try:
            for piece in pieces:
                if piece.written:
                    self._advance(piece.size)
                    written = store_pb2.ChunkList(chunk_ids=piece.written)
                    yield store_pb2.PushPart(written=written).SerializeToString()
                    continue
                view = memoryview(piece.data)
                for at in range(0, len(view), PUSH_DATA_BYTES):
                    yield self._data(view[at : at + PUSH_DATA_BYTES])
        finally:
            pieces.close()

    def _known_chunks(self, source: SeekableSource) -> Iterator[bytes]:
        """Messages for the chunks up to the first batch of which the server has none."""
        chunk_size = self._options.chunk_size or self._channel.describe(self._deadline, self._scope).chunk_size
        batch = _PROBE_CHUNKS_MIN
        while (count := min(batch, (source.size - self._done) // chunk_size)) > 0:
            if self._done == 0 and count < _PROBE_CHUNKS_MIN:
                return
            ids = [blake3(source.read(self._done + index * chunk_size, chunk_size)).digest() for index in range(count)]
            missing = self._missing(ids)
            if all(missing):
                return
            yield from self._reused_or_sent(source, ids, missing, chunk_size)
            batch = min(batch * _PROBE_GROWTH, _PROBE_CHUNKS_MAX)

    def _missing(self, ids: list[bytes]) -> list[bool]:
        profile = self._options.profile
        request = store_pb2.MissingChunksRequest(
            user_id=self._options.user_id,
            chunk_ids=ids,
            profile=profile_to_proto(profile) if profile is not None else None,
        )
        response = self._channel.unary(self._channel.store.MissingChunks, request, self._deadline, self._scope)
        return list(response.missing)

    def _reused_or_sent(
        self, source: SeekableSource, ids: list[bytes], missing: list[bool], chunk_size: int
    ) -> Iterator[bytes]:
        reused: list[bytes] = []
        for chunk_id, must_send in zip(ids, missing, strict=True):
            if not must_send:
                reused.append(chunk_id)
                continue
            if reused:
                yield self._reuse(reused, chunk_size)
                reused = []
            start = self._done
            for at in range(start, start + chunk_size, PUSH_DATA_BYTES):
                yield self._data(source.read(at, min(PUSH_DATA_BYTES, start + chunk_size - at)))
        if reused:
            yield self._reuse(reused, chunk_size)

    def _reuse(self, ids: list[bytes], chunk_size: int) -> bytes:
        self._advance(len(ids) * chunk_size)
        return store_pb2.PushPart(reuse=store_pb2.ChunkList(chunk_ids=ids)).SerializeToString()

    def _data(self, *pieces: BytesLike) -> bytes:
        self._advance(sum(map(len, pieces)))
        return data_frame(*pieces)

    def _last(self, part: store_pb2.PushPart, size: int) -> bytes:
        part.commit.CopyFrom(push_commit(self._options, size))
        self._advance(size - self._done)
        return part.SerializeToString()

    def _advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None and count:
            self._progress(self._done, self._total)

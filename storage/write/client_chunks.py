"""Chunks of an upload whose shards the client writes to the stores itself.

The client seals and codes a chunk, and tells the upload what it will write: :meth:`ClientChunks.place` says to which
stores. Before the chunk counts, the stores are asked for the hashes of what they took (:meth:`ClientChunks.settle`).
Whether these shards belong together, or are what the chunk is called, only the client knows; see
:mod:`storage.write.unverified`.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from storage.erasure import ErasureProfile
from storage.errors import InvalidArgument
from storage.keys import ID_BYTES, SHARD_HASH_BYTES, Kind, ShardKey, StripeKey, shard_key
from storage.sealing.objects import OVERHEAD_BYTES
from storage.write.chunks import AcceptedChunk, suffix_of
from storage.write.context import PushContext
from storage.write.quotas import Taken
from storage.write.target import PushTarget

UNDER_WAY_MAX = 512
"""How many chunks of an upload a client may be writing at a time."""

Ask = Callable[[int, Sequence[ShardKey]], Callable[[], Sequence[bytes | None]]]
"""(store, keys) → what waits for the BLAKE3 hash of each shard that a client wrote to the store; None: it has none, or
gave no answer."""


class ClientChunk(NamedTuple):
    """A chunk, as the client says.

    Attributes:
        plain_id: hash of its content.
        stored_id: hash of what is stored.
        length: length of its content in bytes.
        hashes: of all its shards, the first 16 bytes each.
    """

    plain_id: bytes
    stored_id: bytes
    length: int
    hashes: bytes


class Placed(NamedTuple):
    """A chunk that may be written: its stripe, the length of the stored object, and the store for each shard."""

    stripe: StripeKey
    length: int
    stores: tuple[int, ...]


class WrittenChunk(NamedTuple):
    """A chunk that the stores have, and the hashes of its shards."""

    chunk: AcceptedChunk
    hashes: bytes


class _UnderWay(NamedTuple):
    chunk: ClientChunk
    placed: Placed
    is_settled: bool


class ClientChunks:
    """Those of one upload. Thread-safe. Their stripes are pinned until they are taken, or this is closed.

    Args:
        context: parts of the store.
        target: what the upload writes to; it must be sealed.
        taken: counts the stored bytes for the user's quota.
    """

    def __init__(self, context: PushContext, target: PushTarget, taken: Taken) -> None:
        self._context = context
        self._target = target
        self._taken = taken
        self._suffix = suffix_of(target.profile)
        self._lock = threading.Lock()
        self._chunks: dict[bytes, _UnderWay] = {}  # by the stored id
        self._is_closed = False

    @property
    def profile(self) -> ErasureProfile:
        """How the chunks are coded."""
        return self._target.profile

    @property
    def chunk_size(self) -> int:
        """Size of every chunk except the last one, in bytes."""
        return self._target.chunk_size

    def keys_for(self, plain_ids: Iterable[bytes]) -> tuple[int, list[bytes]]:
        """The epoch of the user's key, and for each content the key that seals the chunk with it and no other."""
        key = self._target.key
        assert key is not None, "the target is sealed"
        return key.epoch, [key.opener(Kind.CHUNK, plain_id) for plain_id in plain_ids]

    def place(self, chunks: Sequence[ClientChunk], is_open: Callable[[int], bool]) -> list[Placed | None]:
        """Say where the client may write chunks.

        Args:
            chunks: the chunks.
            is_open: whether clients can write to a store.

        Returns:
            None for each that must be sent to the upload instead: someone has a chunk of this name already, too many
            are under way, or clients cannot write to all of the stores.

        Raises:
            InvalidArgument: they are malformed.
            QuotaExceeded: the user would take more than allowed.
            InsufficientWorkers, StoreFull: too few stores take writes.
        """
        self._context.stripes.volumes.require_taken(self._target.profile, self._target.epoch)
        return [self._place(self._checked(chunk), is_open) for chunk in chunks]

    def _checked(self, chunk: ClientChunk) -> ClientChunk:
        if len(chunk.plain_id) != ID_BYTES or len(chunk.stored_id) != ID_BYTES:
            raise InvalidArgument(f"the ids of a chunk have {ID_BYTES} bytes each")
        if not 0 < chunk.length <= self._target.chunk_size:
            raise InvalidArgument(f"a chunk has 1 to {self._target.chunk_size} bytes, not {chunk.length}")
        if len(chunk.hashes) != self._target.profile.n * SHARD_HASH_BYTES:
            raise InvalidArgument(f"a chunk comes with {self._target.profile.n} hashes of {SHARD_HASH_BYTES} bytes")
        return chunk

    def _place(self, chunk: ClientChunk, is_open: Callable[[int], bool]) -> Placed | None:
        context, stripe = self._context, StripeKey(chunk.stored_id + self._suffix)
        placed = Placed(stripe, chunk.length + OVERHEAD_BYTES, context.stripes.volumes.targets(stripe))
        if not all(map(is_open, placed.stores)):
            return None
        context.pins.pin(stripe)
        if not self._enter(chunk, placed):
            context.pins.unpin([stripe])
            return None
        try:
            # Whoever has a chunk of this name relies on its shards, of which some may be missing now.
            if context.catalog.is_held(stripe):
                self._forget(chunk.stored_id)
                return None
            self._taken.add(chunk.length)
        except BaseException:
            self._forget(chunk.stored_id)
            raise
        context.activity.note()
        return placed

    def _enter(self, chunk: ClientChunk, placed: Placed) -> bool:
        with self._lock:
            is_full, is_there = len(self._chunks) >= UNDER_WAY_MAX, chunk.stored_id in self._chunks
            if not (self._is_closed or is_full or is_there):
                self._chunks[chunk.stored_id] = _UnderWay(chunk, placed, is_settled=False)
                return True
        return False

    def settle(self, stored_ids: Iterable[bytes], ask: Ask) -> list[bool]:
        """Find out which chunks the stores have as the client said. The client sends the others to the upload."""
        wanted = list(dict.fromkeys(stored_ids))
        with self._lock:
            found = {one: self._chunks[one] for one in wanted if one in self._chunks}
        by_store: defaultdict[int, list[ShardKey]] = defaultdict(list)
        for each in found.values():
            for slot, store in enumerate(each.placed.stores):
                by_store[store].append(shard_key(each.placed.stripe, slot))
        there: dict[ShardKey, bytes] = {}
        asked = [(keys, ask(store, keys)) for store, keys in by_store.items()]
        for keys, answers in asked:
            there.update({key: digest for key, digest in zip(keys, answers(), strict=True) if digest is not None})
        good = {one for one, each in found.items() if _has_all(each, there)}
        with self._lock:
            for one in good & self._chunks.keys():
                self._chunks[one] = self._chunks[one]._replace(is_settled=True)
        for one in found.keys() - good:
            self._taken.await_again(found[one].placed.stripe, found[one].chunk.length)
            self._forget(one)
        return [one in good for one in wanted]

    def take(self, stored_id: bytes) -> WrittenChunk:
        """Take a chunk that is settled. Whoever does so unpins its stripe.

        Raises:
            InvalidArgument: there is none.
        """
        with self._lock:
            found = self._chunks.get(stored_id)
            if found is None or not found.is_settled:
                raise InvalidArgument(f"chunk {stored_id.hex()} was not written; send its bytes")
            del self._chunks[stored_id]
        accepted = AcceptedChunk(found.placed.stripe, found.chunk.plain_id, found.chunk.length)
        return WrittenChunk(accepted, found.chunk.hashes)

    def close(self) -> None:
        """Forget the chunks that were not taken, which count as left over; a collect removes what was written of them.

        One that is being placed counts once, be it before or after this.
        """
        with self._lock:
            self._is_closed = True
            left = dict(self._chunks)
        self._taken.drop([each.chunk.length for stored_id, each in left.items() if self._forget(stored_id)])

    def _forget(self, stored_id: bytes) -> bool:
        """Forget a chunk; return whether it was known."""
        with self._lock:
            found = self._chunks.pop(stored_id, None)
        if found is not None:
            self._context.pins.unpin([StripeKey(found.placed.stripe)])
        return found is not None


def _has_all(under_way: _UnderWay, there: dict[ShardKey, bytes]) -> bool:
    hashes = under_way.chunk.hashes
    return all(
        there.get(shard_key(under_way.placed.stripe, slot), b"")[:SHARD_HASH_BYTES]
        == hashes[slot * SHARD_HASH_BYTES : (slot + 1) * SHARD_HASH_BYTES]
        for slot in range(len(under_way.placed.stores))
    )

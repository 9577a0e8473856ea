"""What the pool says of chunks that a client may write to workers itself."""

from __future__ import annotations

from typing import NamedTuple

from storage.erasure import ErasureProfile
from storage.sealing.aead import KEY_BYTES
from taskworker.client.direct.page import Holder
from taskworker.errors import ServerFault
from taskworker.protos import store_pb2

_SHARDS_MAX = 256
_HOLDERS_MAX = 255
_NOBODY = 0xFF
_TEXT_MAX = 512


class Preparation(NamedTuple):
    """How to seal and code chunks.

    Attributes:
        epoch: of the user's key.
        keys: one for each chunk.
        profile: k and n.
    """

    epoch: int
    keys: list[bytes]
    profile: ErasureProfile


class Places(NamedTuple):
    """Where to write chunks.

    Attributes:
        holders: the workers.
        placed: for each chunk, the position of the worker of each shard; None: it is sent to the pool.
        ticket: what to show to the workers; empty: there is nothing to write.
        authorities: certificates of the authorities that vouch for the workers, PEM; empty: they do not use TLS.
    """

    holders: list[Holder]
    placed: list[tuple[int, ...] | None]
    ticket: bytes
    authorities: bytes


class ChunkKey(NamedTuple):
    """The key of one chunk; see :class:`storage.sealing.objects.SealingKey`."""

    epoch: int
    key: bytes

    def opener(self, _kind: int, _plain_id: bytes) -> bytes:
        """See there."""
        return self.key


def preparation_of(raw: store_pb2.PrepareChunksResponse, count: int) -> Preparation:
    """Read how to seal and code ``count`` chunks.

    Raises:
        ServerFault: it is malformed.
    """
    _require(len(raw.keys) == count * KEY_BYTES, "the keys")
    _require(1 <= raw.k <= raw.n <= _SHARDS_MAX, "k and n")
    _require(1 <= raw.epoch < 1 << 24, "the epoch")
    keys = [raw.keys[at : at + KEY_BYTES] for at in range(0, len(raw.keys), KEY_BYTES)]
    return Preparation(raw.epoch, keys, ErasureProfile(raw.k, raw.n))


def places_of(raw: store_pb2.PlaceChunksResponse, count: int, n: int) -> Places:
    """Read where to write ``count`` chunks of n shards each.

    Raises:
        ServerFault: it is malformed.
    """
    holders = [Holder(one.address, one.name) for one in raw.holders]
    _require(len(holders) <= _HOLDERS_MAX, "the number of workers")
    _require(all(len(one.address) <= _TEXT_MAX and len(one.name) <= _TEXT_MAX for one in holders), "a worker's name")
    _require(len(raw.placed) == count * n, "the places of shards")
    rows = [tuple(raw.placed[at : at + n]) for at in range(0, len(raw.placed), n)]
    placed = [None if set(row) == {_NOBODY} else row for row in rows]
    _require(all(row is None or max(row) < len(holders) for row in placed), "the worker of a shard")
    _require(bool(raw.ticket) or not any(placed), "the ticket")
    return Places(holders, placed, raw.ticket, raw.authorities)


def _require(is_right: bool, what: str) -> None:
    if not is_right:
        raise ServerFault(f"the pool says where to write chunks, but {what} cannot be right; push through the pool")

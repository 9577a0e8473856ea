"""Pages: what the pool says of some chunks of a file, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from storage import Version
from storage.errors import KeyRequired
from storage.keys import ID_BYTES, Kind, StripeKey, stripe_key
from storage.sealing.aead import KEY_BYTES
from storage.sealing.objects import OVERHEAD_BYTES
from taskworker.errors import ServerFault
from taskworker.protos import store_pb2

_CHUNKS_MAX = 1024
_HOLDERS_MAX = 255
_SHARDS_MAX = 256
_NOBODY = 0xFF
_TEXT_MAX = 512
_VALID_MS_MIN = 1000


class Holder(NamedTuple):
    """A worker: its address for clients, and the DNS name in its certificate."""

    address: str
    name: str


class Holders(Protocol):
    """What names workers: a page of chunks to read, or places for chunks to write."""

    @property
    def holders(self) -> list[Holder]:
        """The workers."""

    @property
    def authorities(self) -> bytes:
        """Certificates of the authorities that vouch for them, PEM; empty: they do not use TLS."""


class Page(NamedTuple):
    """How to read some chunks, one after another.

    Attributes:
        first: index of the first chunk.
        stripes: their stripes.
        lengths: their lengths, as they are stored.
        keys: opens them; None: they are not sealed.
        holders: workers that have shards of them.
        placed: for each chunk, the position of the holder of each shard; None: nobody.
        ticket: what to show to the holders.
        valid_s: for how many seconds.
        authorities: certificates of the authorities that vouch for the holders, PEM; empty: they do not use TLS.
    """

    first: int
    stripes: list[StripeKey]
    lengths: list[int]
    keys: PageKeys | None
    holders: list[Holder]
    placed: list[tuple[int | None, ...]]
    ticket: bytes
    valid_s: float
    authorities: bytes


class PageKeys:
    """The keys of a page's chunks, each of which opens one; see :class:`storage.sealing.user_keys.ObjectKeys`.

    Here, chunks are named by the ids of what is stored, as the hashes of their contents need not be known.

    Args:
        ids: ids of the stored chunks.
        by_epoch: by epoch, a key for each of them.
    """

    def __init__(self, ids: Sequence[bytes], by_epoch: dict[int, list[bytes]]) -> None:
        self._by_epoch = {epoch: dict(zip(ids, keys, strict=True)) for epoch, keys in by_epoch.items()}

    def openers(self, epoch: int, kind: int, plain_id: bytes) -> Sequence[bytes]:
        """See :class:`storage.sealing.user_keys.ObjectKeys`."""
        key = self._by_epoch.get(epoch, {}).get(plain_id)
        if key is None or kind != Kind.CHUNK:
            raise KeyRequired(f"the pool gave no key of epoch {epoch}")
        return [key]


def page_of(raw: store_pb2.ShardsPage, version: Version, offset: int) -> Page:
    """Read a page that begins with the chunk at an offset of a version.

    Raises:
        ServerFault: it is malformed, or of other chunks.
    """
    ids = _pieces(raw.ids, ID_BYTES)
    count, holders = len(ids), [Holder(one.address, one.name) for one in raw.holders]
    _require(1 <= raw.k <= raw.n <= _SHARDS_MAX, "k and n")
    _require(1 <= count <= _CHUNKS_MAX, "the number of chunks")
    _require(raw.first == offset // version.chunk_size and raw.first + count <= version.chunk_count, "the position")
    _require(raw.valid_ms >= _VALID_MS_MIN, "for how long its ticket is valid")
    _require(1 <= len(holders) <= _HOLDERS_MAX, "the number of workers")
    _require(all(len(one.address) <= _TEXT_MAX and len(one.name) <= _TEXT_MAX for one in holders), "a worker's name")
    _require(len(raw.placed) == count * raw.n, "the places of shards")
    _require(all(each == _NOBODY or each < len(holders) for each in raw.placed), "the holder of a shard")
    by_epoch = {each.epoch: _pieces(each.keys, KEY_BYTES) for each in raw.keys}
    _require(all(len(keys) == count for keys in by_epoch.values()), "the keys")
    extra = OVERHEAD_BYTES if raw.sealed else 0
    sizes = (
        min(version.chunk_size, version.size - index * version.chunk_size)
        for index in range(raw.first, raw.first + count)
    )
    return Page(
        first=raw.first,
        stripes=[stripe_key(Kind.CHUNK, each, raw.k, raw.n) for each in ids],
        lengths=[size + extra for size in sizes],
        keys=PageKeys(ids, by_epoch) if raw.sealed else None,
        holders=holders,
        placed=[
            tuple(None if each == _NOBODY else each for each in raw.placed[at * raw.n : (at + 1) * raw.n])
            for at in range(count)
        ],
        ticket=raw.ticket,
        valid_s=raw.valid_ms / 1000,
        authorities=raw.authorities,
    )


def _pieces(joined: bytes, size: int) -> list[bytes]:
    _require(len(joined) % size == 0, "a list of ids or keys")
    return [joined[at : at + size] for at in range(0, len(joined), size)]


def _require(is_right: bool, what: str) -> None:
    if not is_right:
        raise ServerFault(f"the pool says where shards are, but {what} cannot be right; read through the pool")

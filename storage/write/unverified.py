"""Chunks of which this process does not know yet that they are what they are called.

The catalog's name of a sealed chunk leads from the hash of its content to the chunk. Whoever wrote the chunk said so:
the store itself, or a client that wrote the shards to the stores itself. So before such a chunk satisfies another push,
it is opened and its content is hashed. If a client wrote it, all of its shards are made from it again, and compared
with the hashes of those that the stores took: parity that does not fit would be found only when it is needed. After a
rebuild it is not known who wrote a chunk, nor those hashes: then the shards themselves are compared.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from blake3 import blake3
from cachetools import LRUCache

from storage.catalog.port import UNKNOWN_ORIGIN, Catalog, CatalogTransaction
from storage.errors import DataLossError, KeyRequired, SealBroken, ShardsUnavailable
from storage.keys import SHARD_HASH_BYTES, Kind, ShardKey, StripeKey, data_shards, slot_of, stripe_of
from storage.sealing.objects import OVERHEAD_BYTES, open_into
from storage.sealing.user_keys import UserKey, UserKeys
from storage.shards import Shard
from storage.write.context import PushContext

_EXCUSED_MAX = 16
"""A shard of unknown origin that is wrong more often than this, although it is made again each time, is a lie."""
_REMEMBERED_MAX = 65_536


def is_verified(
    context: PushContext,
    user: bytes,
    stripe: StripeKey,
    plain_id: bytes,
    key: UserKey | None,
    length: int,
    verified: list[StripeKey] | None = None,
) -> bool:
    """Whether a stripe whose shards all seem to be stored can be reused for content with this hash.

    Args:
        context: parts of the store.
        user: key of the user, who has a claim on it.
        stripe: its stripe.
        plain_id: hash of the content.
        key: the user's key, with which it is sealed; None: it is not.
        length: length of the object in bytes.
        verified: gets the stripe if a client wrote it, for :func:`vouch` with others; None: it is vouched for at once.
    """
    if key is None or not context.stripes.volumes.remote:
        return context.stripes.is_sound(stripe, length)
    hashes = context.catalog.unverified(stripe)
    if context.opened.is_wrong(stripe, plain_id, hashes):
        return False
    is_known = not hashes and context.opened.has(stripe, plain_id)
    if not is_known and not _opens(context, stripe, plain_id, UserKeys("", key), length, hashes):
        return False
    if not context.stripes.is_sound(stripe, length):
        return False
    if hashes:
        if verified is None:
            vouch(context, user, [stripe])
        else:
            verified.append(stripe)
    context.opened.note(stripe, plain_id)
    return True


def _opens(
    context: PushContext, stripe: StripeKey, plain_id: bytes, keys: UserKeys, length: int, hashes: bytes
) -> bool:
    """Whether a stored chunk opens to the right content, and its shards have these hashes, if there are any."""
    if length <= OVERHEAD_BYTES:
        return False
    raw = memoryview(bytearray(-(-length // data_shards(stripe)) * data_shards(stripe)))
    content = memoryview(bytearray(length - OVERHEAD_BYTES))
    try:
        context.stripes.read_into(stripe, raw[:length])
        open_into(keys, Kind.CHUNK, plain_id, raw[:length], content)
        is_right = blake3(content).digest() == plain_id
    except (DataLossError, ShardsUnavailable, KeyRequired):
        return False
    except SealBroken:
        is_right = False
    if is_right and hashes:
        shards = context.stripes.shards_of(stripe, raw, length)
        if hashes == UNKNOWN_ORIGIN:
            return not context.stripes.unsound_slots(stripe, shards)  # which may be otherwise another time
        is_right = hashes_of(shard.digest for shard in shards) == hashes
    if not is_right:  # found out once: it is read for each question otherwise
        context.opened.note_wrong(stripe, plain_id, hashes)
    return is_right


def hashes_of(digests: Iterable[bytes]) -> bytes:
    """What is kept of the hashes of all shards of a stripe."""
    return b"".join(digest[:SHARD_HASH_BYTES] for digest in digests)


class ClaimedOrigins:
    """The ``Origins`` of shards by the claims on their stripes. Thread-safe.

    Args:
        catalog: has the claims.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._excused: LRUCache[ShardKey, int] = LRUCache(_REMEMBERED_MAX)

    def is_of_client(self, shard: Shard) -> bool:
        """See ``Origins``."""
        return _is_among(shard, self._catalog.unverified(stripe_of(shard.key)))

    def is_blameless(self, shard: Shard) -> bool:
        """See ``Origins``. A shard of unknown origin is excused some times only, as it is made again each time."""
        hashes = self._catalog.unverified(stripe_of(shard.key))
        if hashes != UNKNOWN_ORIGIN:
            return _is_among(shard, hashes)
        with self._lock:
            times = self._excused[shard.key] = self._excused.get(shard.key, 0) + 1
        return times <= _EXCUSED_MAX


def _is_among(shard: Shard, hashes: bytes) -> bool:
    """Whether a shard has the hash that is its own among those of all shards of its stripe."""
    at = slot_of(shard.key) * SHARD_HASH_BYTES
    return hashes[at : at + SHARD_HASH_BYTES] == shard.digest[:SHARD_HASH_BYTES]


def vouch_for_put(context: PushContext, user: bytes, stripe: StripeKey) -> None:
    """Like :func:`vouch`, of a stripe that the store has just written in the place of what a client wrote.

    If others stand in for a store, or any store is away, maybe for so long that others have taken its place, that one
    still has what the client wrote, for which it is not to blame later.
    """
    volumes = context.stripes.volumes
    are_all_there = all(volumes.volume(slot) is not None for slot in volumes.slots)
    if are_all_there and volumes.targets(stripe) == volumes.holders(stripe):
        vouch(context, user, [stripe])


def vouch(context: PushContext, user: bytes, stripes: Sequence[StripeKey]) -> None:
    """Note that the store has verified all shards of stripes, or has just written them in the place of others.

    If a store loses what it has just been given, it may have the former shards again: those that the client wrote.
    """

    def work(txn: CatalogTransaction) -> None:
        for stripe in stripes:
            txn.vouch(user, stripe)

    if stripes:
        context.catalog.transact(work)

"""What clients wrote to a volume lately, so that the pool can ask for it before it counts on it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from storage.keys import ShardKey
from storage.shards import ShardStore
from taskworker.transport.frames import NO_DIGEST

_REMEMBERED = 32_768  # with some 200 B each; of chunks of 1 MiB, those of 32 GiB


class ShardsOfClients:
    """Remembers the hashes of the latest shards that clients wrote. Thread-safe.

    Attributes:
        unsynced: bytes that clients wrote since the last sync; need not be exact.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.unsynced = 0
        self._digests: OrderedDict[ShardKey, bytes] = OrderedDict()

    def note(self, key: ShardKey, digest: bytes) -> None:
        """Note that a client wrote a shard with this hash, or one that was there already."""
        with self._lock:
            self._digests.pop(key, None)
            self._digests[key] = digest
            if len(self._digests) > _REMEMBERED:
                self._digests.popitem(last=False)

    def forget(self, keys: Iterable[ShardKey]) -> None:
        """Forget shards that are about to be written, until they are."""
        with self._lock:
            for key in keys:
                self._digests.pop(key, None)

    def get(self, key: ShardKey) -> bytes | None:
        """The hash of a shard that a client wrote; None: unknown."""
        with self._lock:
            return self._digests.get(key)

    def digests(self, volume: ShardStore, keys: Sequence[ShardKey]) -> Iterator[bytes]:
        """The hash of each shard that a client wrote and that the volume has; zeros for others."""
        missing = set(volume.missing(keys))
        for position, key in enumerate(keys):
            yield NO_DIGEST if position in missing else self.get(key) or NO_DIGEST

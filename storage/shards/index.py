"""A volume's index: shard key → where its record is. Derivable from the segments at any time.

New entries live in memory and go to LMDB in batches, together with how far each segment is indexed;
what a crash loses of them is found again by reading the segments from there on.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from storage.errors import FormatError
from storage.keys import ShardKey
from storage.lmdb_env import Environment, Transaction
from storage.shards.port import Location

_LOCATION = struct.Struct("<IIII")
_CHECKPOINT = struct.Struct("<QQ")
_SEGMENT_KEY = struct.Struct(">I")
PENDING_MAX = 8192  # about 2 MB of memory a volume, and a second's work to find again after a crash

Pending = dict[ShardKey, bytes | None]


class SegmentState:
    """What is known of a segment: bytes indexed so far (its valid length) and bytes of live records."""

    __slots__ = ("live", "size")

    def __init__(self, size: int, live: int) -> None:
        self.size = size
        self.live = live


class ShardIndex:
    """Lookups see pending and stored entries alike. One writer at a time (the volume's lock)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._environment = self._open()
        self._pending: Pending = {}
        self._flushing: Pending = {}

    def _open(self) -> Environment:
        try:
            return Environment(self._path, ("shards", "segments"))
        except FormatError:
            # Derivable: a damaged index is dropped and made again from the segments.
            shutil.rmtree(self._path)
            return Environment(self._path, ("shards", "segments"))

    def get(self, key: ShardKey) -> Location | None:
        """Where the shard is. Entries move pending → flushing → LMDB, and are looked for in that order."""
        value = self._pending.get(key, b"")
        if value == b"":
            value = self._flushing.get(key, b"")
            if value == b"":
                value = self._environment.get("shards", key)
        return None if value is None else Location(*_LOCATION.unpack(value))

    def recent(self, key: ShardKey) -> Location | None:
        """Like :meth:`get`, of what has not reached LMDB yet."""
        value = self._pending.get(key, b"")
        if value == b"":
            value = self._flushing.get(key)
        return Location(*_LOCATION.unpack(value)) if value else None

    def put(self, key: ShardKey, location: tuple[int, int, int, int]) -> None:
        """Add or move an entry (in memory until the next flush)."""
        self._pending[key] = _LOCATION.pack(*location)

    def replace(
        self, key: ShardKey, segment: int, offset: int, payload_length: int, object_length: int
    ) -> Location | None:
        """Like :meth:`put`; gives the entry replaced if that had not reached LMDB yet."""
        pending = self._pending
        old = pending.get(key)
        if old is None and self._flushing:
            old = self._flushing.get(key)
        pending[key] = _LOCATION.pack(segment, offset, payload_length, object_length)
        return None if old is None else Location(*_LOCATION.unpack(old))

    def remove(self, key: ShardKey) -> None:
        """Drop an entry (in memory until the next flush)."""
        self._pending[key] = None

    @property
    def pending(self) -> int:
        """Entries a flush would write."""
        return len(self._pending)

    def freeze(self) -> bool:
        """Set the pending entries aside for :meth:`flush`; False if a flush is still under way."""
        if self._flushing:
            return False
        self._flushing, self._pending = self._pending, {}
        return True

    def flush(self, segments: dict[int, tuple[int, int]], dropped: list[int]) -> None:
        """Write the frozen entries and the segments' (size, live) in one durable transaction."""
        entries = self._flushing

        def work(txn: Transaction) -> None:
            shards = txn.cursor(self._environment.databases["shards"])
            shards.putmulti([(key, value) for key, value in sorted(entries.items()) if value is not None])
            for key, value in entries.items():
                if value is None and shards.set_key(key):
                    shards.delete()
            table = self._environment.databases["segments"]
            for number, state in segments.items():
                txn.put(_SEGMENT_KEY.pack(number), _CHECKPOINT.pack(*state), db=table)
            for number in dropped:
                txn.delete(_SEGMENT_KEY.pack(number), db=table)

        self._environment.write(work)
        self._flushing = {}

    def thaw(self) -> None:
        """Take frozen entries back after a failed flush; newer pending ones win."""
        self._pending = {**self._flushing, **self._pending}
        self._flushing = {}

    def segments(self) -> dict[int, SegmentState]:
        """The checkpoint of every segment known to LMDB."""
        found: dict[int, SegmentState] = {}
        for page in self._environment.pages("segments", b""):
            for key, value in page:
                found[_SEGMENT_KEY.unpack(key)[0]] = SegmentState(*_CHECKPOINT.unpack(value))
        return found

    def keys(self, start: bytes, stop: bytes | None) -> Iterator[ShardKey]:
        """Keys in order. Pending ones are flushed first by the volume."""
        for page in self._environment.pages("shards", start, stop):
            for key, _ in page:
                yield ShardKey(key)

    def entries(self) -> int:
        """Number of entries, pending ones counted as new."""
        return self._environment.entries("shards") + len(self._pending) + len(self._flushing)

    def clear(self) -> None:
        """Forget everything, to be made again from the segments."""
        self._environment.close()
        shutil.rmtree(self._path)
        self._environment = self._open()
        self._pending, self._flushing = {}, {}

    def close(self) -> None:
        """Close the LMDB environment."""
        self._environment.close()

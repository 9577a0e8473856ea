"""The port between the engine and whatever keeps shards: a local volume, or a worker's over the network."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from storage.errors import StorageError, StoreReadOnly, StoreUnavailable
from storage.keys import Kind, ShardKey
from storage.limits import BytesLike


class Shard(NamedTuple):
    """One shard on its way to or from a store. ``digest`` is the BLAKE3 of ``payload``."""

    key: ShardKey
    object_length: int
    digest: bytes
    payload: BytesLike


class Location(NamedTuple):
    """Where a shard's record is: segment number, offset in it, payload and whole object length (bytes)."""

    segment: int
    offset: int
    payload_length: int
    object_length: int

    def is_at(self, segment: int, offset: int) -> bool:
        """Whether the record begins at this offset of this segment."""
        return self.segment == segment and self.offset == offset


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    """Space and content of a volume; sizes in bytes."""

    segments: int
    bytes_used: int
    bytes_live: int
    bytes_free: int
    shards: int


class VolumeFailed(StorageError):
    """The volume cannot be used any more until it is opened again (I/O error, directory removed)."""


class VolumeUnavailable(StoreUnavailable):
    """The volume, or a part of it, cannot be read or written now. What is stored there may be intact."""


class VolumeReadOnly(VolumeUnavailable, StoreReadOnly):
    """The volume's file system is read-only. What it holds can be read."""


class CorruptShard(StorageError):
    """A stored shard was read completely, and does not match its digest or its key."""


class Verdict(IntEnum):
    """What a verification found of a shard."""

    GOOD = 0
    ROTTEN = 1
    MISSING = 2
    UNREADABLE = 3
    """It is there, but cannot be read now."""


class Verification(Protocol):
    """A store after everything in it was read and verified."""

    def judge(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """How these shards are; rotten ones are set aside, so that they are missing from now on."""

    def quarantine_rest(self) -> Iterator[ShardKey]:
        """Set all other rotten shards aside, too: a push of the same content would count on them."""


class ShardStore(Protocol):
    """Keeps shards under their keys. Thread-safe. Content is immutable: one key, one content.

    Appended shards can be read at once; they survive power loss after the next :meth:`sync`.
    """

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """Store shards, in order. After an error some may be there: nothing refers to them yet.

        Args:
            shards: what to store.
            urgent: may use the space kept back for deleting and collecting.

        Raises:
            StoreFull: no space.
            VolumeFailed: the volume is unusable.
        """

    def sync(self) -> None:
        """Make everything appended before this call durable. Concurrent calls share one flush."""

    def locate(self, key: ShardKey) -> Location | None:
        """Where the shard is, or None; no payload is read."""

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        """:meth:`locate` for many shards."""

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        """Which of many shards are not there: their positions in ``keys``, ascending. Cheaper than where they are."""

    def read_into(self, key: ShardKey, buffers: Sequence[memoryview], length: int) -> bool:
        """Read the payload into ``buffers`` (``length`` bytes in all) WITHOUT checking it.

        False if the shard is not there or has another length. The caller verifies the whole object.
        """

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> Sequence[memoryview | None]:
        """Payloads, unchecked like those of :meth:`read_into`, in memory of the store's own.

        Args:
            wanted: key and payload length of each. One that is not there, or has another length, gives None.
        """

    def read(self, key: ShardKey) -> Shard | None:
        """The shard, its header and digest checked; None if it is not there.

        One that was set aside for being unreadable, and can be read again, counts as there from now on.

        Raises:
            CorruptShard: what is stored is not what was written.
            VolumeUnavailable: it cannot be read now, whatever it is like.
        """

    def remove(self, keys: Iterable[ShardKey]) -> int:
        """Forget shards; their space is freed by :meth:`compact`. Returns how many were there."""

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """Set a shard aside that was found bad, unless it is not where it was any more: another copy may be good.

        It is missing from now on, but its bytes are kept until a good record of it is there, or it is removed.

        Args:
            key: the shard.
            location: where it was.
            wrong: its object was read without it, and this is no part of that. Otherwise it is read once more
                first, and stays if it is good.
        """

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        """Keys in ``start`` <= key < ``stop``, in order, as they are now or become during the walk.

        Those of shards set aside are among them.
        """

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        """Every intact record of these kinds, in small pages, by a scan of what is on disk; none that was removed.

        A page may be empty: then the scan goes on, and has found nothing for some time.

        Raises:
            VolumeUnavailable: at the end, after all others: some cannot be read now.
        """

    def newest(self) -> Shard | None:
        """The version or tombstone of the highest commit sequence of those it has and can read; None if it has none.

        Raises:
            VolumeUnavailable: none of them can be read now.
        """

    def verify(self, progress: Callable[[int], None]) -> Verification:
        """Read and verify everything that is stored. ``progress`` gets numbers of bytes read."""

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """Read these shards and verify them; rotten ones are set aside, so that they are missing from now on."""

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        """Rewrite segments with at most this share of live bytes; returns (segments, bytes freed)."""

    def usage(self) -> VolumeUsage:
        """Space and content."""

    def abandon(self, reason: str) -> None:
        """Let go of everything after a failure; what is under way fails with VolumeFailed."""

    def close(self) -> None:
        """Flush the index and let go of all files."""


class DamagedRanges:
    """Byte ranges of segments whose content is bad, added in ascending order within a segment."""

    def __init__(self) -> None:
        self._by_segment: dict[int, list[tuple[int, int]]] = {}

    def add(self, segment: int, start: int, stop: int) -> None:
        """Note that bytes start…stop of a segment are bad."""
        ranges = self._by_segment.setdefault(segment, [])
        if ranges and ranges[-1][1] >= start:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        else:
            ranges.append((start, stop))

    def hits(self, segment: int, start: int, stop: int) -> bool:
        """Whether a record at start…stop overlaps a bad range."""
        ranges = self._by_segment.get(segment)
        if not ranges:
            return False
        at = bisect_left(ranges, (start + 1,))
        return (at > 0 and ranges[at - 1][1] > start) or (at < len(ranges) and ranges[at][0] < stop)

    def __bool__(self) -> bool:
        return bool(self._by_segment)

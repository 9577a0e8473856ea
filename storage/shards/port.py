"""The interface of the engine to where shards are stored: a local volume, or a worker's volume over the network."""

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
    """A shard with its payload. ``digest`` is the BLAKE3 hash of ``payload``."""

    key: ShardKey
    object_length: int
    digest: bytes
    payload: BytesLike


class Location(NamedTuple):
    """Where a shard's record is: segment number and offset, with the lengths of payload and object (bytes)."""

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
    """The volume cannot be used until it is opened again (I/O error, directory removed)."""


class VolumeUnavailable(StoreUnavailable):
    """The volume, or a part of it, cannot be read or written now. Its data may be intact."""


class VolumeReadOnly(VolumeUnavailable, StoreReadOnly):
    """The volume's file system is read-only. Its data can be read."""


class CorruptShard(StorageError):
    """A stored shard was read completely and does not match its digest or key."""


class Verdict(IntEnum):
    """The result of verifying a shard."""

    GOOD = 0
    ROTTEN = 1
    MISSING = 2
    UNREADABLE = 3
    """The shard is there, but cannot be read now."""


class Verification(Protocol):
    """The result of reading and verifying everything in a shard store."""

    def judge(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """Return the verdict on each shard. Corrupt ones are set aside, and count as missing from then on."""

    def quarantine_rest(self) -> Iterator[ShardKey]:
        """Set aside and yield all other corrupt shards, so that a push of the same content stores them again."""


class ShardStore(Protocol):
    """Stores shards under their keys. Thread-safe. The content of a key never changes.

    Appended shards can be read at once, and survive a power loss after the next :meth:`sync`.
    """

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """Store shards, in order. After an error some of them may be there, but nothing refers to them yet.

        Args:
            shards: the shards to store.
            urgent: may use the space that is reserved for deleting and collecting.

        Raises:
            StoreFull: no space.
            VolumeFailed: the volume is unusable.
        """

    def sync(self) -> None:
        """Make everything appended before this call durable. Concurrent calls share one flush."""

    def locate(self, key: ShardKey) -> Location | None:
        """Return where the shard is, or None; reads no payload."""

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        """:meth:`locate` for many shards."""

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        """Return the positions in ``keys`` of missing shards, ascending. Cheaper than :meth:`locate_all`."""

    def read_into(self, key: ShardKey, buffers: Sequence[memoryview], length: int) -> bool:
        """Read the payload into ``buffers`` (``length`` bytes in all) WITHOUT checking it.

        Returns False if the shard is not there or has another length. The caller verifies the whole object.
        """

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> Sequence[memoryview | None]:
        """Return payloads in memory that the store allocates, WITHOUT checking them.

        Args:
            wanted: key and payload length of each shard. One that is not there or has another length gives None.
        """

    def begin_fetch(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Sequence[bool] | StorageError], None],
    ) -> Callable[[], None]:
        """Begin to read payloads into memory, WITHOUT checking them.

        Args:
            wanted: key and payload length of each shard.
            into: memory for each payload, with its length. What is in the place of a shard that is not read is
                undefined.
            done: called once, maybe before this returns, maybe by another thread, in which it must not wait: with
                whether each payload is in its place, or with the error if nothing is known of any.

        Returns:
            A function that gives the fetch up if it has not ended. Once that returns, the memory is not written to any
            more; ``done`` is called all the same, once the store has answered.

        Raises:
            VolumeFailed: the volume is unusable.
        """

    def read(self, key: ShardKey) -> Shard | None:
        """Return the shard after checking its header and digest; None if it is not there.

        A shard that was set aside as unreadable, and can be read again, is found again from now on.

        Raises:
            CorruptShard: the stored bytes are not those that were written.
            VolumeUnavailable: it cannot be read now, and may be intact.
        """

    def remove(self, keys: Iterable[ShardKey]) -> int:
        """Forget shards; their space is freed by :meth:`compact`. Returns how many were there."""

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """Set a bad shard aside, unless its record has moved or been replaced; returns whether it was set aside.

        The shard is missing from now on, but its bytes are kept until a good record of it is stored, or it is
        removed.

        Args:
            key: the shard's key.
            location: where the bad record was found.
            wrong: the object was read from other shards, and this one does not belong to it. If False, the shard is
                read once more first, and stays if it is good.
        """

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        """Yield keys in ``start`` <= key < ``stop``, in order, including those of shards set aside.

        Changes made during the walk may show.
        """

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        """Scan the disk and yield every intact record of these kinds in small pages; removed ones are left out.

        A page may be empty, to show that the scan goes on although it has found nothing for some time.

        Raises:
            VolumeUnavailable: some records cannot be read now; raised after all others were yielded.
        """

    def newest(self) -> Shard | None:
        """Return the readable version or tombstone with the highest commit sequence; None if the store has none.

        Raises:
            VolumeUnavailable: none of them can be read now.
        """

    def verify(self, progress: Callable[[int], None]) -> Verification:
        """Read and verify everything that is stored. ``progress`` is called with numbers of bytes read."""

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """Read and verify these shards. Corrupt ones are set aside, and count as missing from then on."""

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        """Move live records out of segments with at most this share of live bytes, and remove these segments.

        Returns:
            Number of segments removed, and bytes freed.
        """

    def usage(self) -> VolumeUsage:
        """Return the space used and the number of shards."""

    def abandon(self, reason: str) -> None:
        """Close everything after a failure; operations in progress raise VolumeFailed."""

    def close(self) -> None:
        """Flush the index and close all files."""


class DamagedRanges:
    """Byte ranges of segments whose content is bad, added in ascending order within a segment."""

    def __init__(self) -> None:
        self._by_segment: dict[int, list[tuple[int, int]]] = {}

    def add(self, segment: int, start: int, stop: int) -> None:
        """Note that the bytes from ``start`` to ``stop`` of a segment are bad."""
        ranges = self._by_segment.setdefault(segment, [])
        if ranges and ranges[-1][1] >= start:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        else:
            ranges.append((start, stop))

    def hits(self, segment: int, start: int, stop: int) -> bool:
        """Whether a record from ``start`` to ``stop`` overlaps a bad range."""
        ranges = self._by_segment.get(segment)
        if not ranges:
            return False
        at = bisect_left(ranges, (start + 1,))
        return (at > 0 and ranges[at - 1][1] > start) or (at < len(ranges) and ranges[at][0] < stop)

    def __bool__(self) -> bool:
        return bool(self._by_segment)

"""Valid records: their entries in the index, and the live bytes of their segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from storage.formats.sequences import bears_sequence, sequence_in
from storage.keys import ShardKey
from storage.limits import BytesLike
from storage.shards.index import Aside, Newest, ShardIndex
from storage.shards.port import Location, Shard
from storage.shards.record import HEADER_BYTES, SEGMENT_HEADER_BYTES
from storage.shards.scan import ScannedRecord
from storage.shards.segment_table import SegmentTable


class Entries:
    """Changes the index and the segment table together. Guarded by the volume's lock."""

    def __init__(self, index: ShardIndex, table: SegmentTable) -> None:
        self._index = index
        self._table = table
        self._appended = True  # whether anything was appended since live bytes were counted

    # -- valid records ---------------------------------------------------------------------------

    def enter(self, shards: Sequence[Shard], segment: int, offset: int) -> None:
        """Index records that were just written one after another, and release those that they replace.

        Writers check first whether a shard exists, so a second copy can only come from a race between them. Then the
        replaced entry is recent, and it is enough to look for it in memory.
        """
        start = offset
        for key, object_length, _, payload in shards:
            length = len(payload)
            if bears_sequence(key):
                self._note_sequence(key, payload)
            replaced = self._index.replace(key, segment, offset, length, object_length)
            if replaced is not None:
                self._table.release(replaced)
            self._drop_any_aside(key)
            offset += HEADER_BYTES + length
        self._table[segment].live += offset - start
        self._appended = True

    def enter_found(self, shard: Shard, segment: int, offset: int) -> None:
        """Index an intact record that was found in a segment, in place of an earlier entry."""
        old = self._index.get(shard.key)
        if old is not None and not old.is_at(segment, offset):
            self._table.release(old)
        self._index.put(shard.key, Location(segment, offset, len(shard.payload), shard.object_length))
        self._drop_any_aside(shard.key)
        if bears_sequence(shard.key):
            self._note_sequence(shard.key, shard.payload)
        self._table[segment].live += HEADER_BYTES + len(shard.payload)

    def enter_bad(self, found: ScannedRecord, segment: int) -> None:
        """Set aside a complete but damaged record, unless there is a good one."""
        key, length = found.header.key, found.header.payload_length
        if self._index.get(key) is None and self._index.aside(key) is None:
            place = Location(segment, found.offset, length, found.header.object_length)
            if self._index.set_aside(key, Aside(place, wrong=False)):
                self._table[segment].live += HEADER_BYTES + length

    def _note_sequence(self, key: ShardKey, payload: BytesLike) -> None:
        sequence, newest = sequence_in(key, payload), self._index.newest
        if sequence and (newest is None or sequence >= newest.sequence):
            self._index.newest = Newest(sequence, key)

    def release(self, location: Location) -> None:
        """Note that a record is about to be entered at another location."""
        self._table.release(location)

    def remove(self, key: ShardKey) -> bool:
        """Forget a shard, including a record set aside; return whether there was any."""
        location = self._index.get(key)
        if location is not None:
            self._index.remove(key)
            self._table.release(location)
        return self._drop_any_aside(key) or location is not None

    def _drop_any_aside(self, key: ShardKey) -> bool:
        """Forget a shard's record that is set aside; return whether there was one."""
        aside = self._index.forget_aside(key)
        if aside is not None:
            self._table.release(aside.location)
        return aside is not None

    # -- records set aside -----------------------------------------------------------------------

    def set_aside(self, key: ShardKey, location: Location, *, wrong: bool) -> bool:
        """Exclude a record from reads, unless the shard has another one by now. Its bytes still count as live.

        Returns:
            Whether it was set aside.
        """
        if self._index.get(key) != location or not self._index.set_aside(key, Aside(location, wrong)):
            return False
        self._index.remove(key)
        return True

    def restore(self, key: ShardKey, aside: Aside) -> bool:
        """Make a record readable again that was set aside; return False if it is not set aside any more."""
        if self._index.aside(key) != aside or self._index.get(key) is not None:
            return False
        self._index.forget_aside(key)
        self._index.put(key, aside.location)
        return True

    def drop_aside(self, key: ShardKey, aside: Aside) -> None:
        """Forget a record set aside of which nothing is left."""
        self._index.forget_aside(key)
        self._table.release(aside.location)

    def move_aside(self, key: ShardKey, aside: Aside, segment: int, offset: int) -> None:
        """Note that the bytes of a record set aside were copied to another segment, where they count from now on."""
        self._table[segment].live += HEADER_BYTES + aside.location.payload_length
        self._table.release(aside.location)
        self._index.set_aside(key, Aside(aside.location._replace(segment=segment, offset=offset), aside.wrong))

    # -- correcting the counts -------------------------------------------------------------------

    def begin_count(self) -> dict[int, int] | None:
        """Return segment sizes before a count of live bytes; None if nothing was appended since the last count."""
        appended, self._appended = self._appended, False
        return self._table.sizes() if appended else None

    def correct(self, sizes: dict[int, int], counted: Counter[int]) -> None:
        """Lower the live bytes of segments to the counted ones.

        If a shard is stored a second time and its first entry is already in LMDB, its first record stays counted.

        Args:
            sizes: sizes of the segments before the count.
            counted: result of :meth:`ShardIndex.live_bytes`.
        """
        for number, size in sizes.items():
            state = self._table.get(number)
            if state is not None:  # bytes appended during the count may not be included
                most = SEGMENT_HEADER_BYTES + counted[number] + state.size - size
                state.live = min(state.live, most)

"""Records that count: entries of the index, and the live bytes that they make up in their segments."""

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
    """Changes the index and the table of segments together. Guarded by the volume's lock."""

    def __init__(self, index: ShardIndex, table: SegmentTable) -> None:
        self._index = index
        self._table = table
        self._appended = True  # since live bytes were last counted

    # -- records that are there ------------------------------------------------------------------

    def enter(self, shards: Sequence[Shard], segment: int, offset: int) -> None:
        """Index records that were just written one after another, and release those that they replace.

        Only recent entries can be replaced here: writers ask for a shard's presence first, so a
        second copy comes from a race between them. Looking in memory alone is what that needs.
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
        """Index an intact record that was found in a segment, in place of any that is indexed."""
        old = self._index.get(shard.key)
        if old is not None and not old.is_at(segment, offset):
            self._table.release(old)
        self._index.put(shard.key, Location(segment, offset, len(shard.payload), shard.object_length))
        self._drop_any_aside(shard.key)
        if bears_sequence(shard.key):
            self._note_sequence(shard.key, shard.payload)
        self._table[segment].live += HEADER_BYTES + len(shard.payload)

    def enter_bad(self, found: ScannedRecord, segment: int) -> None:
        """Set aside a whole record that is not intact, unless there is a good one."""
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
        """A record is about to be entered at another place."""
        self._table.release(location)

    def remove(self, key: ShardKey) -> bool:
        """Forget a shard; False if there was none, not even one set aside."""
        location = self._index.get(key)
        if location is not None:
            self._index.remove(key)
            self._table.release(location)
        return self._drop_any_aside(key) or location is not None

    def _drop_any_aside(self, key: ShardKey) -> bool:
        """Forget the record of a shard that is set aside; False if there is none."""
        aside = self._index.forget_aside(key)
        if aside is not None:
            self._table.release(aside.location)
        return aside is not None

    # -- records set aside -----------------------------------------------------------------------

    def set_aside(self, key: ShardKey, location: Location, *, wrong: bool) -> bool:
        """Let nobody read a record any more, unless the shard has another by now. Its bytes still count as live."""
        if self._index.get(key) != location or not self._index.set_aside(key, Aside(location, wrong)):
            return False
        self._index.remove(key)
        return True

    def restore(self, key: ShardKey, aside: Aside) -> bool:
        """Let a record be read again that was set aside; False if it is not set aside any more."""
        if self._index.aside(key) != aside or self._index.get(key) is not None:
            return False
        self._index.forget_aside(key)
        self._index.put(key, aside.location)
        return True

    def drop_aside(self, key: ShardKey, aside: Aside) -> None:
        """Nothing is left of a record that is set aside."""
        self._index.forget_aside(key)
        self._table.release(aside.location)

    def move_aside(self, key: ShardKey, aside: Aside, segment: int, offset: int) -> None:
        """The bytes of a record that is set aside were copied to the end of a segment, and count there from now on."""
        self._table[segment].live += HEADER_BYTES + aside.location.payload_length
        self._table.release(aside.location)
        self._index.set_aside(key, Aside(aside.location._replace(segment=segment, offset=offset), aside.wrong))

    # -- correcting the counts -------------------------------------------------------------------

    def begin_count(self) -> dict[int, int] | None:
        """Sizes of segments before their live bytes are counted; None if nothing was appended since the last time."""
        appended, self._appended = self._appended, False
        return self._table.sizes() if appended else None

    def correct(self, sizes: dict[int, int], counted: Counter[int]) -> None:
        """Lower the live bytes of segments to what was counted.

        A shard that is stored a second time, its entry being in LMDB already, leaves its first record counted.

        Args:
            sizes: of the segments, before the count was begun.
            counted: what :meth:`ShardIndex.live_bytes` found.
        """
        for number, size in sizes.items():
            state = self._table.get(number)
            if state is not None:  # what was appended meanwhile may not be among what was counted
                most = SEGMENT_HEADER_BYTES + counted[number] + state.size - size
                state.live = min(state.live, most)

"""The table of a volume's segments: their sizes and their live bytes."""

from __future__ import annotations

from storage.shards.index import SegmentState
from storage.shards.port import Location
from storage.shards.record import HEADER_BYTES


class SegmentTable:
    """The state of each segment, by number. Changes need the volume's lock; single look-ups do not.

    Attributes:
        last: the highest number ever used. Numbers are never reused, so that an outdated entry of the index cannot
            point into a later segment.
    """

    def __init__(self) -> None:
        self.last = 0
        self._states: dict[int, SegmentState] = {}
        self._dropped: list[int] = []

    def begin_anew(self, last: int, dropped: list[int]) -> None:
        """Forget all segments.

        Args:
            last: the highest number ever used.
            dropped: segments that are gone but still have a row in the index.
        """
        self.last, self._states, self._dropped = last, {}, dropped

    def __contains__(self, number: int) -> bool:
        return number in self._states

    def __getitem__(self, number: int) -> SegmentState:
        return self._states[number]

    def get(self, number: int) -> SegmentState | None:
        """Return a segment's state; None if there is no such segment."""
        return self._states.get(number)

    def numbers(self) -> list[int]:
        """Return the numbers of all segments, ascending."""
        return sorted(self._states)

    def items(self) -> list[tuple[int, SegmentState]]:
        """Return number and state of all segments."""
        return list(self._states.items())

    def add(self, number: int, state: SegmentState) -> None:
        """Add a segment."""
        self._states[number] = state

    def forget(self, number: int) -> None:
        """Remove a segment that turned out not to be one."""
        del self._states[number]

    def drop(self, number: int) -> None:
        """Remove a segment whose file is about to be removed. The next flush deletes its row in the index."""
        self._states.pop(number, None)
        self._dropped.append(number)

    def release(self, location: Location) -> None:
        """Note that the record at a location is not live any more."""
        state = self._states.get(location.segment)
        if state is not None:
            state.live -= HEADER_BYTES + location.payload_length

    def covers(self, segment: int, stop: int) -> bool:
        """Whether a segment exists and reaches up to the offset ``stop``."""
        state = self._states.get(segment)
        return state is not None and stop <= state.size

    def sizes(self) -> dict[int, int]:
        """Return the size of each segment in bytes, by its number, ascending."""
        return {number: state.size for number, state in sorted(self._states.items())}

    def bytes_indexed(self) -> int:
        """Return the size of all segments together, in bytes."""
        return sum(state.size for state in list(self._states.values()))

    # -- rows in the index -----------------------------------------------------------------------

    def checkpoint(self) -> dict[int, tuple[int, int]]:
        """Return size and live bytes of each segment, as they are now."""
        # Rotten index entries can make a count negative. It is stored as zero, so that the next opening makes the index
        # again.
        return {number: (state.size, max(state.live, 0)) for number, state in self._states.items()}

    def take_dropped(self) -> list[int]:
        """Return removed segments whose rows in the index have to be deleted now.

        The row of the last segment stays even if its file is gone: it records the highest number.
        """
        dropped = [number for number in self._dropped if number != self.last]
        self._dropped = [number for number in self._dropped if number == self.last]
        return dropped

    def give_back_dropped(self, dropped: list[int]) -> None:
        """Add back rows that could not be deleted, for the next flush."""
        self._dropped += dropped

"""Which segments a volume has, how long each is, and how much of it is live."""

from __future__ import annotations

from storage.shards.index import SegmentState
from storage.shards.port import Location
from storage.shards.record import HEADER_BYTES


class SegmentTable:
    """The state of each segment, by number. Changed under the volume's lock; single look-ups need none.

    Attributes:
        last: the highest number that was ever used. Numbers are never used twice, so that a stale entry of the
            index cannot point into a later segment.
    """

    def __init__(self) -> None:
        self.last = 0
        self._states: dict[int, SegmentState] = {}
        self._dropped: list[int] = []

    def begin_anew(self, last: int, dropped: list[int]) -> None:
        """Forget all segments.

        Args:
            last: the highest number that was ever used.
            dropped: segments that are gone, and still have a row in the index.
        """
        self.last, self._states, self._dropped = last, {}, dropped

    def __contains__(self, number: int) -> bool:
        return number in self._states

    def __getitem__(self, number: int) -> SegmentState:
        return self._states[number]

    def get(self, number: int) -> SegmentState | None:
        """A segment's state; None if there is no such segment."""
        return self._states.get(number)

    def numbers(self) -> list[int]:
        """Numbers of all segments, ascending."""
        return sorted(self._states)

    def items(self) -> list[tuple[int, SegmentState]]:
        """Number and state of all segments."""
        return list(self._states.items())

    def add(self, number: int, state: SegmentState) -> None:
        """There is a segment of this number."""
        self._states[number] = state

    def forget(self, number: int) -> None:
        """A segment turned out to be none."""
        del self._states[number]

    def drop(self, number: int) -> None:
        """A segment is about to be removed; its row in the index goes with the next flush."""
        self._states.pop(number, None)
        self._dropped.append(number)

    def release(self, location: Location) -> None:
        """The record there is no longer live."""
        state = self._states.get(location.segment)
        if state is not None:
            state.live -= HEADER_BYTES + location.payload_length

    def covers(self, segment: int, stop: int) -> bool:
        """Whether a segment is there and reaches to offset ``stop``."""
        state = self._states.get(segment)
        return state is not None and stop <= state.size

    def sizes(self) -> dict[int, int]:
        """Bytes of each segment by its number, ascending."""
        return {number: state.size for number, state in sorted(self._states.items())}

    def bytes_indexed(self) -> int:
        """Bytes of all segments together."""
        return sum(state.size for state in list(self._states.values()))

    # -- what the index keeps of it --------------------------------------------------------------

    def checkpoint(self) -> dict[int, tuple[int, int]]:
        """Size and live bytes of each segment, as they are now."""
        # A count below zero comes of rotten index entries; kept as zero, it has the index made again.
        return {number: (state.size, max(state.live, 0)) for number, state in self._states.items()}

    def take_dropped(self) -> list[int]:
        """Removed segments whose rows in the index are to be deleted now.

        The row of the last segment stays even if its file is gone: it records the highest number.
        """
        dropped = [number for number in self._dropped if number != self.last]
        self._dropped = [number for number in self._dropped if number == self.last]
        return dropped

    def give_back_dropped(self, dropped: list[int]) -> None:
        """These rows could not be deleted: the next flush tries again."""
        self._dropped += dropped

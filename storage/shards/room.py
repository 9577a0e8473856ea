"""Whether a volume has space for more: what its file system tells, and what writes have found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from storage.clocks import monotonic_s
from storage.errors import StoreFull
from storage.limits import MIB
from storage.shards.filesystem import Space
from storage.system.backoff import Backoff

_RESERVE_SHARE = 50  # keep 1/50 of the file system free, so that deleting and collecting can still write
_RESERVE_BYTES_MIN = 4 * MIB
_RESERVE_BYTES_MAX = 64 * MIB
_CHECK_BYTES = 4 * MIB


class Room:
    """Guarded by its volume's lock.

    Args:
        path: the volume's directory, for messages.
        space: asks its file system.
        clock_s: monotonic seconds.

    Attributes:
        lacking: why the latest write found no space; empty if it did, or there is more since.
    """

    def __init__(self, path: Path, space: Callable[[], Space], clock_s: Callable[[], float] = monotonic_s) -> None:
        self._path = path
        self._space = space
        self._unchecked = 0  # bytes that fit without asking again
        self._until = 0  # bytes free from which on there may be space; 0 if the space that is free tells nothing
        self._wanted = 0
        self._retry = Backoff(clock_s=clock_s)
        self.lacking = ""

    def require(self, length: int) -> None:
        """Refuse a write that would eat into the reserve that deleting and collecting need.

        Raises:
            StoreFull: it would.
        """
        if not self.fits(length):
            space = self._space()
            self._until, self._wanted = _reserve(space) + length, length
            raise StoreFull(self._text(space))

    def fits(self, length: int) -> bool:
        """Whether so much more leaves that reserve."""
        self._unchecked -= length
        if self._unchecked > 0:
            return True
        space = self._space()
        left = space.free - length - _reserve(space)
        if left >= 0:
            self._unchecked = min(_CHECK_BYTES, left // 8)
        return left >= 0

    def found_none(self, error: OSError | StoreFull) -> StoreFull:
        """What to raise for a write for which the file system, a quota or a limit has no space."""
        self._until = self._wanted = 0
        return StoreFull(f"volume {self._path} is full: {error.strerror if isinstance(error, OSError) else error}")

    def note_refused(self, error: StoreFull) -> None:
        """A write ended with this error."""
        self.lacking = str(error)
        self._retry.failed()

    def note_taken(self) -> None:
        """A write found space. One that was larger may still find none."""
        if self.lacking and (not self._until or self._space().free >= self._until):
            self.note_freed()

    def note_freed(self) -> None:
        """There is more space: whoever writes next learns whether it is enough."""
        self.lacking, self._until = "", 0
        self._retry.succeeded()

    @property
    def may_be_tried(self) -> bool:
        """Whether only a write can tell if there is space again, and it is time for one."""
        return bool(self.lacking) and not self._until and self._retry.due()

    @property
    def wanted(self) -> int:
        """Bytes that the latest write was refused for want of, as its file system tells; 0 if nothing tells."""
        return self._wanted if self.lacking else 0

    def has(self, length: int) -> bool:
        """Whether so much could be written now and leave that reserve, whatever quotas and limits there are."""
        space = self._space()
        return space.free - length >= _reserve(space)

    def is_used_up(self) -> bool:
        """Whether nothing at all can be written but by deleting and collecting."""
        return not self.has(0)

    def why_full(self) -> str:
        """Why there is no space now; empty if there is, for all that is known."""
        space = self._space()
        if space.free < _reserve(space):
            return self._text(space)
        return self.lacking if not self._until or space.free < self._until else ""

    def _text(self, space: Space) -> str:
        return (
            f"volume {self._path} is full: it has {space.free} bytes free, of which {_reserve(space)} are kept for "
            "deleting and collecting; delete files and run collect, or add room"
        )


def _reserve(space: Space) -> int:
    """Bytes of a file system that ordinary writes leave free."""
    return min(max(space.total // _RESERVE_SHARE, _RESERVE_BYTES_MIN), _RESERVE_BYTES_MAX)

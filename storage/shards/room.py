"""Whether a volume has space: as reported by its file system, and as found by writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from storage.clocks import monotonic_s
from storage.errors import StoreFull
from storage.limits import MIB
from storage.shards.filesystem import Space
from storage.system.backoff import Backoff

_RESERVE_SHARE = 50  # reserve 1/50 of the file system, so that deletes and collects can still write
_RESERVE_BYTES_MIN = 4 * MIB
_RESERVE_BYTES_MAX = 64 * MIB
_CHECK_BYTES = 4 * MIB


class Room:
    """The space of a volume. Guarded by the volume's lock.

    Args:
        path: directory of the volume, for messages.
        space: returns the space on its file system.
        clock_s: monotonic clock, in seconds.

    Attributes:
        lacking: why the latest write found no space; empty if it found some, or if space was freed since.
    """

    def __init__(self, path: Path, space: Callable[[], Space], clock_s: Callable[[], float] = monotonic_s) -> None:
        self._path = path
        self._space = space
        self._unchecked = 0  # bytes that fit without asking the file system again
        self._until = 0  # free bytes needed for another attempt; 0 if free bytes do not show whether there is space
        self._wanted = 0
        self._retry = Backoff(clock_s=clock_s)
        self.lacking = ""

    def require(self, length: int) -> None:
        """Refuse a write that would use the reserve for deletes and collects.

        Raises:
            StoreFull: it would.
        """
        if not self.fits(length):
            space = self._space()
            self._until, self._wanted = _reserve(space) + length, length
            raise StoreFull(self._text(space))

    def fits(self, length: int) -> bool:
        """Whether a write of ``length`` bytes leaves the reserve free."""
        self._unchecked -= length
        if self._unchecked > 0:
            return True
        space = self._space()
        left = space.free - length - _reserve(space)
        if left >= 0:
            self._unchecked = min(_CHECK_BYTES, left // 8)
        return left >= 0

    def found_none(self, error: OSError | StoreFull) -> StoreFull:
        """Return the error for a write for which the file system, a quota or a limit has no space."""
        self._until = self._wanted = 0
        return StoreFull(f"volume {self._path} is full: {error.strerror if isinstance(error, OSError) else error}")

    def note_refused(self, error: StoreFull) -> None:
        """Note that a write found no space."""
        self.lacking = str(error)
        self._retry.failed()

    def note_taken(self) -> None:
        """Note that a write found space. A larger one may still find none."""
        if self.lacking and (not self._until or self._space().free >= self._until):
            self.note_freed()

    def note_freed(self) -> None:
        """Note that space was freed. The next write finds out whether it is enough."""
        self.lacking, self._until = "", 0
        self._retry.succeeded()

    @property
    def may_be_tried(self) -> bool:
        """Whether only a write can find out if there is space again, and an attempt is due."""
        return bool(self.lacking) and not self._until and self._retry.due()

    @property
    def wanted(self) -> int:
        """Size of the latest write refused by the free space of the file system; 0 if there was none."""
        return self._wanted if self.lacking else 0

    def has(self, length: int) -> bool:
        """Whether ``length`` bytes could be written now and leave the reserve free, ignoring quotas and limits."""
        space = self._space()
        return space.free - length >= _reserve(space)

    def is_used_up(self) -> bool:
        """Whether only deletes and collects can still write."""
        return not self.has(0)

    def why_full(self) -> str:
        """Return why there is no space now; empty if there is, as far as is known."""
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
    """Return how many bytes of a file system ordinary writes leave free."""
    return min(max(space.total // _RESERVE_SHARE, _RESERVE_BYTES_MIN), _RESERVE_BYTES_MAX)

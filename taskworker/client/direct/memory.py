"""Memory for what arrives from workers."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import deque
from collections.abc import Iterator

from storage.limits import MIB

_HUGE_PAGE_BYTES = 2 * MIB
_TOTAL_BYTES = 96 * MIB  # as much as four gets read ahead, each three batches of 8 MiB
_PIECES = 3
_KEPT_BYTES = 24 * MIB  # for the next get; the system may take it sooner


def new_memory(size: int) -> memoryview:
    """Return new memory, which goes back to the system once nobody uses it.

    If it is large, it consists of huge pages where the system has some. With them, getting and filling 8 MiB takes
    1.0 ms instead of 4.3 ms.
    """
    if size < _HUGE_PAGE_BYTES:
        return memoryview(bytearray(size))
    try:
        mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # too many mappings
        return memoryview(bytearray(size))
    with contextlib.suppress(OSError):  # a kernel without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapped)


def _is_unused(mapped: mmap.mmap) -> bool:
    """Whether nobody has a view of it."""
    try:
        mapped.resize(len(mapped))  # to what it is: refused while there are views
    except (BufferError, OSError):  # OSError: a system that cannot do it says nothing
        return False
    return True


class SharedMemory:
    """Memory for all gets that have none from their callers: the more there are, the less each has. Thread-safe.

    Large pieces are kept for the next get. Getting new ones from the system, which clears them, takes up to half of the
    processor time of a get of 32 MiB. If the system runs short of memory, it takes what is kept.

    Args:
        total_bytes: for all of them, and what is kept, besides one chunk for each.
    """

    def __init__(self, total_bytes: int = _TOTAL_BYTES) -> None:
        self._total_bytes = total_bytes
        self._lock = threading.RLock()  # a garbage collection may end a get that was abandoned, in any thread
        self._gets = 0
        self._used = 0
        self._kept: deque[mmap.mmap] = deque()

    @contextlib.contextmanager
    def used(self) -> Iterator[GetMemory]:
        """Within this context, a get uses memory."""
        with self._lock:
            self._gets += 1
        memory = GetMemory(self)
        try:
            yield memory
        finally:
            memory.free()
            with self._lock:
                self._gets -= 1

    @property
    def piece_bytes(self) -> int:
        """How large each of the pieces may be that a get has at the same time."""
        return self._total_bytes // max(1, self._gets) // _PIECES

    def take(self, most: int, least: int, *, must: bool) -> int:
        """Take memory, if there is as much as ``least``, or if one must have it; return how many bytes were taken."""
        with self._lock:
            taken = min(most, max(least, min(self.piece_bytes, self._total_bytes - self._used)))
            if not must and self._used + taken > self._total_bytes:
                return 0
            self._used += taken
            self._drop_surplus()
            return taken

    def give_back(self, count: int) -> None:
        """Note that so many bytes are not used any more."""
        with self._lock:
            self._used -= count

    def keep(self, piece: memoryview) -> None:
        """Keep a piece that was given back, if it is large. Whoever still has a view of it can use that."""
        mapped = piece.obj
        if not isinstance(mapped, mmap.mmap):
            return
        piece.release()
        if _is_unused(mapped):
            with contextlib.suppress(OSError):  # a kernel that cannot take it later
                mapped.madvise(mmap.MADV_FREE)
        with self._lock:
            self._kept.append(mapped)
            self._drop_surplus()

    def kept(self, least: int, most: int) -> memoryview | None:
        """A piece that was kept and has so many bytes, and of which nobody has a view."""
        with self._lock:
            kept, self._kept = self._kept, deque()
            found = next((one for one in kept if least <= len(one) <= most and _is_unused(one)), None)
            self._kept.extend(one for one in kept if one is not found)
        return None if found is None else memoryview(found)

    def _drop_surplus(self) -> None:
        most = min(_KEPT_BYTES, self._total_bytes - self._used)
        while self._kept and sum(map(len, self._kept)) > most:
            self._kept.popleft()


class GetMemory:
    """The memory of one get. Used by one thread at a time."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._spare: list[memoryview] = []
        self._lent: deque[memoryview] = deque()
        self._taken = 0  # bytes, which the next piece has

    def room(self, most: int, least: int) -> int:
        """How many bytes the next piece may have: at least ``least``, or none while there are others."""
        if self._spare and len(self._spare[-1]) >= min(least, most):
            return min(most, len(self._spare[-1]))
        if not self._taken:
            self._taken = self._shared.take(most, min(least, most), must=not self._lent)
        return self._taken

    def lend(self, length: int) -> memoryview:
        """Memory for the next piece, for which there is room."""
        if self._spare and len(self._spare[-1]) >= length:
            whole = self._spare.pop()
        else:
            whole = self._shared.kept(length, self._taken) or new_memory(length)
            self._shared.give_back(self._taken - len(whole))
            self._taken = 0
        self._lent.append(whole)
        return whole[:length]

    def take_back(self) -> None:
        """Take back the piece that was lent first. It is used again, or freed if it is more than others have."""
        whole = self._lent.popleft()
        if len(whole) <= self._shared.piece_bytes:
            self._spare.append(whole)
        else:
            self._shared.give_back(len(whole))

    def free(self) -> None:
        """Free everything."""
        pieces = (*self._spare, *self._lent)
        self._shared.give_back(self._taken + sum(map(len, pieces)))
        self._spare, self._lent, self._taken = [], deque(), 0
        for piece in pieces:
            self._shared.keep(piece)


SHARED = SharedMemory()
"""That of this process."""

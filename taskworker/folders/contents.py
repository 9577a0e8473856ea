"""Reads files of a tree: small ones at once, large ones piece by piece, holes of sparse ones not at all."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable

from blake3 import blake3

from taskworker.folders.entries import Entry
from taskworker.folders.problems import ChangedWhileRead, Unstorable
from taskworker.folders.scanning import Found

SMALL_BYTES_MAX = 512 * 1024
"""Files up to this size are read at once."""

_READ_BYTES = 1 << 20
_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE, which Python has no name for: what Linux takes the times of files from
_TICK_MAX_NS = 20_000_000  # twice the longest tick that Linux can be built with
_SKEW_MAX_NS = 3_600_000_000_000
_COARSE_NS = 10_000_000  # the finest times of file systems such as exFAT; others' are such multiples by chance only
_LONG_TICK_NS = 2_000_000_000  # as of FAT's times
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CHANGED = "it was changed while it was read; what is stored may be a mixture: take it again when nobody writes to it"


def settled(entry: Entry) -> bool:
    """Whether a write from now on gives a file another time than it has. This may wait for the clock's next tick.

    Linux before 6.13, and some file systems still, take the times of files from a clock that ticks every 1 to 10 ms. If
    a file is read in the tick in which it was written, it may be written again in that tick, and nothing shows that.
    It is False if the clock of the file system is ahead, or has long ticks, as those that know whole seconds only.
    """
    time_ns = entry.ctime_ns
    if time_ns % _COARSE_NS == 0:
        return not 0 <= time.clock_gettime_ns(_COARSE_CLOCK) - time_ns <= _LONG_TICK_NS
    while (ahead_ns := time_ns - time.clock_gettime_ns(_COARSE_CLOCK)) >= 0:
        if ahead_ns > _TICK_MAX_NS:
            return ahead_ns > _SKEW_MAX_NS  # no time that is given from now on comes near this one
        time.sleep(_TICK_MAX_NS / 20e9)
    return True


def opened(found: Found) -> int:
    """Open a file that was found.

    Raises:
        Unstorable: something else has taken its place.
        OSError: it cannot be opened.
    """
    name = found.path.rpartition(b"/")[2]
    try:
        descriptor = os.open(name, _FLAGS, dir_fd=found.parent)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Unstorable("a symbolic link has taken its place since it was found") from None
        raise
    status = os.fstat(descriptor)
    if (status.st_ino, status.st_dev) != (found.entry.inode, found.device):
        os.close(descriptor)
        raise Unstorable("another file has taken its place since it was found")
    return descriptor


def read_small(found: Found) -> tuple[bytes, Exception | None]:
    """All bytes of a file of up to 512 KiB, and whether it was changed meanwhile.

    Raises:
        Unstorable: something else has taken its place, or it grew beyond all measure.
        OSError: it cannot be read.
    """
    descriptor = opened(found)
    try:
        pieces = []
        room = found.entry.size + 1  # so that growing is seen, and the end is found without one more read
        while room and (piece := os.read(descriptor, room)):
            pieces.append(piece)
            room -= len(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        changed = _is_changed(descriptor, found, len(data))
    finally:
        os.close(descriptor)
    return data[: found.entry.size], ChangedWhileRead(CHANGED) if changed else None


def _is_changed(descriptor: int, found: Found, count: int) -> bool:
    status = os.fstat(descriptor)
    entry = found.entry
    return count != entry.size or (status.st_mtime_ns, status.st_size) != (entry.mtime_ns, entry.size)


class LargeContent(io.RawIOBase):
    """The content of a large file, as a file to read once. What lies in holes is not read.

    At most as many bytes are given as the file had when it was found, so that a log that grows comes to an end.

    Args:
        found: the file; it is opened at once.
        ended: called with the number of bytes read, the BLAKE3 of the content, and whether the file was changed.
    """

    def __init__(
        self,
        found: Found,
        ended: Callable[[int, bytes, bool], None],
    ) -> None:
        super().__init__()
        self._found = found
        self._descriptor = opened(found)
        self._ended: Callable[[int, bytes, bool], None] | None = ended
        self._digest = blake3()
        self._position = 0
        self._data_end = 0 if found.entry.sparse else found.entry.size
        self._data_start = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is not: what was read is hashed."""
        return False

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer with what comes next, as far as it comes at once."""
        if self._ended is None:
            return 0
        view = memoryview(buffer).cast("B")
        count = self._filled(view[: max(0, self._found.entry.size - self._position)])
        if count:
            self._digest.update(view[:count])
            self._position += count
        elif len(view):
            self._end()
        return count

    def read(self, size: int = -1, /) -> bytes:
        """The bytes that come next."""
        pieces = []
        while size and (piece := self._piece(_READ_BYTES if size < 0 else min(size, _READ_BYTES))):
            pieces.append(piece)
            if size > 0:
                size -= len(piece)
        return b"".join(pieces)

    def _piece(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.readinto(memoryview(buffer))])

    def _filled(self, view: memoryview) -> int:
        if not len(view):
            return 0
        if self._position >= self._data_end:
            self._find_data()
        if self._position < self._data_start:
            count = min(len(view), self._data_start - self._position)
            view[:count] = bytes(count)
            return count
        return os.preadv(self._descriptor, [view[: self._data_end - self._position]], self._position)

    def _find_data(self) -> None:
        """Find the next part of the file that is no hole."""
        size = self._found.entry.size
        try:
            self._data_start = os.lseek(self._descriptor, self._position, os.SEEK_DATA)
            self._data_end = os.lseek(self._descriptor, self._data_start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            self._data_start = self._data_end = size  # nothing but a hole is left
        self._data_start, self._data_end = min(self._data_start, size), min(self._data_end, size)

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            changed = _is_changed(self._descriptor, self._found, self._position)
            ended(self._position, self._digest.digest(), changed)
            self.close()

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)
        super().close()

"""Reads a segment file from front to back without an index, continues after damage, and uses bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from blake3 import blake3

from storage.shards.filesystem import VolumeFile
from storage.shards.port import Shard
from storage.shards.record import HEADER_BYTES, RECORD_MAGIC, Header, parse_header

_WINDOW_BYTES = 4 << 20
PAGE_BYTES = 4096

GoPast = Callable[[OSError], bool]
"""Returns whether a page that could not be read, with this error, should be treated as a gap."""


class ScannedRecord(NamedTuple):
    """A record with an authentic header.

    ``stop`` is the record's end, or the start of another record inside the range of a torn one.
    ``payload`` is valid until the next step of the scan, and empty if the record is not intact.
    """

    offset: int
    stop: int
    header: Header
    payload: memoryview
    intact: bool
    unreadable: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is as long as its header says. The payload may still be wrong."""
        return self.stop - self.offset == HEADER_BYTES + self.header.payload_length

    def shard(self) -> Shard:
        """Return the shard of an intact record; its payload, too, is valid until the next step of the scan."""
        return Shard(self.header.key, self.header.object_length, self.header.digest, self.payload)

    def copied(self) -> Shard:
        """Return the shard of an intact record with a copy of its payload."""
        return Shard(self.header.key, self.header.object_length, self.header.digest, bytes(self.payload))


class Gap(NamedTuple):
    """Bytes in which no record was found: a torn tail, a hole, or a damaged header.

    ``unreadable``: some of these bytes could not be read, so they may contain records.
    """

    offset: int
    stop: int
    unreadable: bool = False


class _Window:
    """A sliding view of a file that makes few, large reads."""

    def __init__(self, file: VolumeFile, start: int, stop: int, go_past: GoPast | None) -> None:
        self._file = file
        self._go_past = go_past
        self._stop = stop
        self._buffer = bytearray(min(_WINDOW_BYTES, max(stop - start, 0)))
        self._start = 0
        self._filled = 0
        self._withheld: list[tuple[int, int]] = []  # ranges that could not be read

    def withheld(self, start: int, stop: int) -> bool:
        """Whether any of these bytes could not be read. Later calls must not ask for bytes before ``start``."""
        while self._withheld and self._withheld[0][1] <= start:
            del self._withheld[0]
        return any(first < stop and last > start for first, last in self._withheld)

    def view(self, offset: int, length: int) -> memoryview:
        """Return ``length`` bytes from ``offset`` on, fewer at the end of the file."""
        if not (self._start <= offset and offset + length <= self._start + self._filled):
            self._fill(offset, length)
        at = offset - self._start
        return memoryview(self._buffer)[at : min(at + length, self._filled)]

    def _fill(self, offset: int, length: int) -> None:
        if length > len(self._buffer):
            self._buffer = bytearray(length)
        want = min(len(self._buffer), max(self._stop - offset, 0))
        view = memoryview(self._buffer)
        filled = 0
        while filled < want:
            read = self._read(view[filled:want], offset + filled)
            if read == 0:
                break
            filled += read
        self._start, self._filled = offset, filled

    def _read(self, view: memoryview, offset: int) -> int:
        """Read into a buffer. A page that cannot be read is filled with zeros and noted, if ``go_past`` allows it."""
        try:
            return self._file.read_into([view], offset)
        except OSError:
            if self._go_past is None:
                raise
            part = view[: PAGE_BYTES - offset % PAGE_BYTES]
            try:
                return self._file.read_into([part], offset)
            except OSError as error:
                if not self._go_past(error):
                    raise
                part[:] = bytes(len(part))
                self._withheld.append((offset, offset + len(part)))
                return len(part)


def scan_records(
    file: VolumeFile, volume_key: bytes, start: int, stop: int, *, go_past: GoPast | None = None
) -> Iterator[ScannedRecord | Gap]:
    """Yield records and gaps between ``start`` and ``stop``, in order; every byte belongs to one of them.

    Args:
        file: a segment.
        volume_key: key for the tags of its records.
        start: where the first record or gap begins.
        stop: where the last one ends.
        go_past: decides whether an unreadable page is treated as a gap; None: never. Callers must not drop or cut
            off such a gap, as it may contain records.

    Raises:
        OSError: a page cannot be read, and is not treated as a gap.
    """
    window = _Window(file, start, stop, go_past)
    offset = start
    while offset < stop:
        header = parse_header(window.view(offset, HEADER_BYTES), volume_key)
        if header is None:
            resumed = _next_record(window, volume_key, offset + 1, stop)
            yield Gap(offset, resumed, window.withheld(offset, resumed))
            offset = resumed
            continue
        payload = window.view(offset + HEADER_BYTES, header.payload_length)
        whole = len(payload) == header.payload_length
        intact = whole and blake3(payload).digest() == header.digest
        end = offset + HEADER_BYTES + header.payload_length
        if not intact:
            # The range of a torn record may contain later records, so search it.
            end = min(end, _next_record(window, volume_key, offset + HEADER_BYTES, min(end, stop)))
            payload = payload[:0]  # the search may have moved the window
        end = min(end, stop)
        yield ScannedRecord(offset, end, header, payload, intact, not intact and window.withheld(offset, end))
        offset = end


def _next_record(window: _Window, volume_key: bytes, offset: int, stop: int) -> int:
    """Return the offset of the next record with an authentic header at or after ``offset``, or ``stop``."""
    step = _WINDOW_BYTES // 2
    while offset < stop:
        view = window.view(offset, min(step, stop - offset))
        block = bytes(view)
        at = block.find(RECORD_MAGIC)
        while at >= 0:
            if parse_header(window.view(offset + at, HEADER_BYTES), volume_key) is not None:
                return offset + at
            at = block.find(RECORD_MAGIC, at + 1)
        # The magic may straddle two blocks.
        offset += max(len(block) - len(RECORD_MAGIC) + 1, 1)
    return stop

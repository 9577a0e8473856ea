"""Reading a segment file from front to back without an index, past damage, in bounded memory."""

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
"""Whether to take a page for a gap that failed to be read with this error."""


class ScannedRecord(NamedTuple):
    """A record with an authentic header, up to ``stop``: its end, or where a torn one was written over.

    ``payload`` is valid until the next step of the scan.
    """

    offset: int
    stop: int
    header: Header
    payload: memoryview
    intact: bool
    unreadable: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether all the bytes are there that its header promises, whatever they are."""
        return self.stop - self.offset == HEADER_BYTES + self.header.payload_length

    def shard(self) -> Shard:
        """The shard of an intact record; its payload is valid until the next step of the scan, too."""
        return Shard(self.header.key, self.header.object_length, self.header.digest, self.payload)

    def copied(self) -> Shard:
        """The shard of an intact record, to keep."""
        return Shard(self.header.key, self.header.object_length, self.header.digest, bytes(self.payload))


class Gap(NamedTuple):
    """Bytes that are no record: a torn tail, a hole, or rot in a header.

    ``unreadable``: the disk would not give some of them, so that nothing is known of those.
    """

    offset: int
    stop: int
    unreadable: bool = False


class _Window:
    """A sliding view of a file: ``view(offset, length)`` with few large reads."""

    def __init__(self, file: VolumeFile, start: int, stop: int, go_past: GoPast | None) -> None:
        self._file = file
        self._go_past = go_past
        self._stop = stop
        self._buffer = bytearray(min(_WINDOW_BYTES, max(stop - start, 0)))
        self._start = 0
        self._filled = 0
        self._withheld: list[tuple[int, int]] = []  # what the disk would not give

    def withheld(self, start: int, stop: int) -> bool:
        """Whether the disk would not give something of these bytes, which lie before all that is read from now on."""
        while self._withheld and self._withheld[0][1] <= start:
            del self._withheld[0]
        return any(first < stop and last > start for first, last in self._withheld)

    def view(self, offset: int, length: int) -> memoryview:
        """Bytes offset…offset+length, fewer at the end of the file."""
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
        """Bytes that the disk will not give are read as zeros, and noted, if ``go_past`` allows it."""
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
    """Records and gaps between ``start`` and ``stop``, in order; every byte belongs to one of them.

    Args:
        file: a segment.
        volume_key: key of its records' tags.
        start: where the first record or gap begins.
        stop: where the last one ends.
        go_past: which pages that cannot be read to take for a gap; None: no page. Whoever drops or cuts off what
            is no record must have seen it.

    Raises:
        OSError: the disk will not give some bytes.
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
            # A torn payload may have swallowed the start of later records: look inside it, too.
            end = min(end, _next_record(window, volume_key, offset + HEADER_BYTES, min(end, stop)))
            payload = payload[:0]  # the search may have moved the window
        end = min(end, stop)
        yield ScannedRecord(offset, end, header, payload, intact, not intact and window.withheld(offset, end))
        offset = end


def _next_record(window: _Window, volume_key: bytes, offset: int, stop: int) -> int:
    """Offset of the next authentic record at or after ``offset``, or ``stop``."""
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

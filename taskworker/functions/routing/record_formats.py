"""The formats of the records of calls: lines, entries, positions, and their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

_ENTRY_BYTES = 64 << 10
"""Lines are added to one entry until it has this many bytes."""

_PIECE_BYTES = 4000
"""Fits into one page of 4 KiB; LMDB gives each value that is larger than half a page its own page."""

_PAGE_BYTES = 4096

_OVERHEAD = 224
"""Bytes of an entry besides its text: its keys in four trees, whose pages are two thirds full."""


@dataclass(frozen=True, slots=True)
class RecordBounds:
    """Limits on what is kept.

    Attributes:
        function_bytes: bytes for each function.
        total_bytes: bytes for all functions.
        age_s: seconds for which lines are kept.
    """

    function_bytes: int = 16 << 20
    total_bytes: int = 256 << 20
    age_s: float = 14 * 86_400.0


@dataclass(frozen=True, slots=True)
class LoggedLine:
    """A line of a call's output, or, in the stream ``event``, how it ended."""

    time_ms: int
    call_id: str
    worker: str
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class LineQuery:
    """Selects lines.

    Attributes:
        function: lines of this function; empty: of all.
        call_id: lines of calls whose id starts with this; empty: of all.
        since_ms: lines from this time on, ms since 1970.
    """

    function: str = ""
    call_id: str = ""
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the log: all entries before ``number``, and ``lines`` lines of that entry, come before it."""

    number: int = 0
    lines: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """Some lines, the position of the next page, and whether it has lines now."""

    lines: list[LoggedLine]
    following: Position
    more: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """Lines of one call, in the form in which they are kept."""

    function: str
    call_id: str
    lines: int
    body: bytes

    @classmethod
    def all_of(cls, function: str, call_id: str, worker: str, lines: Sequence[tuple[int, str, str]]) -> list[Entry]:
        """Split a call's lines (time, stream, text) into entries of bounded size."""
        entries: list[Entry] = []
        some: list[tuple[int, str, str]] = []
        size = 0
        for line in lines:
            some.append(line)
            size += len(line[2]) + 16
            if size >= _ENTRY_BYTES:
                entries.append(cls(function, call_id, len(some), packed(worker, some)))
                some, size = [], 0
        if some:
            entries.append(cls(function, call_id, len(some), packed(worker, some)))
        return entries

    @property
    def kept_bytes(self) -> int:
        """Bytes that it takes on disk."""
        full, last = divmod(len(self.body), _PIECE_BYTES)
        beside_it = max(1, _PIECE_BYTES // (last + 20))  # how many pieces of this size share a page
        return _OVERHEAD + full * _PAGE_BYTES + (_PAGE_BYTES // beside_it if last else 0)


def packed(worker: str, lines: list[tuple[int, str, str]]) -> bytes:
    """Serialize the lines that a call printed on a worker."""
    try:
        return msgspec.msgpack.encode((worker, lines))
    except UnicodeEncodeError:
        readable = [(time_ms, stream, text.encode(errors="replace").decode()) for time_ms, stream, text in lines]
        return msgspec.msgpack.encode((worker, readable))

"""What is kept of calls: lines, entries, positions, and how large they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

_ENTRY_BYTES = 64 << 10
"""Lines are put into one entry until it has so many bytes."""

_PIECE_BYTES = 4000
"""What LMDB keeps in one page of 4 KiB, as it does for each value of more than half of one."""

_PAGE_BYTES = 4096

_OVERHEAD = 224
"""Bytes of an entry beside its text: its keys in four trees, whose pages are two thirds full."""


@dataclass(frozen=True, slots=True)
class RecordBounds:
    """How much is kept.

    Attributes:
        function_bytes: of each function.
        total_bytes: of all together.
        age_s: for how long.
    """

    function_bytes: int = 16 << 20
    total_bytes: int = 256 << 20
    age_s: float = 14 * 86_400.0


@dataclass(frozen=True, slots=True)
class LoggedLine:
    """A line of a call's output, or how it ended (stream ``event``)."""

    time_ms: int
    call_id: str
    worker: str
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class LineQuery:
    """Which lines are wanted.

    Attributes:
        function: of this one; empty: of all.
        call_id: of calls whose id begins so; empty: of all.
        since_ms: not older than that.
    """

    function: str = ""
    call_id: str = ""
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """Before a line: so many lines of an entry, and all of earlier entries, come before it."""

    number: int = 0
    lines: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """Some lines; where the next page begins, and whether there is one now."""

    lines: list[LoggedLine]
    following: Position
    more: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """Lines of one call, as they are kept."""

    function: str
    call_id: str
    lines: int
    body: bytes

    @classmethod
    def all_of(cls, function: str, call_id: str, worker: str, lines: Sequence[tuple[int, str, str]]) -> list[Entry]:
        """A call's lines (time, stream, text), cut into entries of bounded size."""
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
        """What it takes on disk."""
        full, last = divmod(len(self.body), _PIECE_BYTES)
        beside_it = max(1, _PIECE_BYTES // (last + 20))  # so many pieces of this size in a page
        return _OVERHEAD + full * _PAGE_BYTES + (_PAGE_BYTES // beside_it if last else 0)


def packed(worker: str, lines: list[tuple[int, str, str]]) -> bytes:
    """The lines that a call printed at a worker, as they are kept."""
    try:
        return msgspec.msgpack.encode((worker, lines))
    except UnicodeEncodeError:
        readable = [(time_ms, stream, text.encode(errors="replace").decode()) for time_ms, stream, text in lines]
        return msgspec.msgpack.encode((worker, readable))

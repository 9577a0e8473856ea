"""Collects what a call prints, and splits it into lines."""

from __future__ import annotations

import threading
from collections.abc import Callable

from storage.clocks import wall_ms
from taskworker.calls.call import LINE_CHARS_MAX, LINES_MAX, OutputLine
from taskworker.calls.large_reports import conversion_permit
from taskworker.calls.redaction import Redactor


class Output:
    """Collects the output of one call, looking at each byte once. The sandbox limits the number of bytes.

    Args:
        now_ms: milliseconds since 1970.
    """

    def __init__(self, now_ms: Callable[[], int] = wall_ms) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._lines: list[tuple[int, str, bytes]] = []
        self._begun: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._dropped = 0

    def add(self, stream: str, piece: bytes) -> None:
        """Add a piece that was written to ``stdout`` or ``stderr``."""
        now_ms = self._now_ms()
        with self._lock:
            begun = self._begun[stream]
            *complete, rest = piece.split(b"\n")
            if complete:
                complete[0] = bytes(begun) + complete[0]
                begun.clear()
                self._keep(now_ms, stream, complete)
            begun += rest

    def lines(self, redactor: Redactor) -> list[OutputLine]:
        """Remove and return all lines: in order, redacted, long ones cut, with a note on what was dropped."""
        now_ms = self._now_ms()
        with self._lock:
            for stream, begun in self._begun.items():
                if begun:
                    self._keep(now_ms, stream, [bytes(begun)])
                begun.clear()
            lines, self._lines = self._lines, []
            dropped, self._dropped = self._dropped, 0
        with conversion_permit(len(lines)):
            texts = redactor.texts([line.decode("utf-8", "replace").rstrip("\r") for _, _, line in lines])
            found = [
                OutputLine(time_ms, stream, text if len(text) <= LINE_CHARS_MAX else f"{text[:LINE_CHARS_MAX]}...")
                for (time_ms, stream, _), text in zip(lines, texts, strict=True)
            ]
        if dropped:
            text = f"{dropped:,} more lines were dropped: only the first {LINES_MAX:,} of a call are kept"
            found.append(OutputLine(now_ms, "event", text))
        return found

    def _keep(self, time_ms: int, stream: str, complete: list[bytes]) -> None:
        room = LINES_MAX - len(self._lines)
        self._lines += ((time_ms, stream, line) for line in complete[:room])
        self._dropped += max(0, len(complete) - room)

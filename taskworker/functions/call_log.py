"""What calls printed and logged, as far as is kept, for those who want to read it, or to follow it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from taskworker.functions.calls import Call, CallReport

_LINES_KEPT = 2_000
_CHARS_KEPT = 1 << 20
_FUNCTIONS_KEPT = 256
_WAKE_S = 0.5


@dataclass(frozen=True, slots=True)
class LoggedLine:
    """A line of a call's output, or how it ended (stream ``event``)."""

    time_ms: int
    call_id: str
    worker: str
    stream: str
    text: str


class _Lines:
    def __init__(self) -> None:
        self.lines: deque[LoggedLine] = deque()
        self.first = 0  # number of the oldest line kept
        self.chars = 0

    def add(self, line: LoggedLine) -> None:
        self.lines.append(line)
        self.chars += len(line.text)
        while len(self.lines) > _LINES_KEPT or self.chars > _CHARS_KEPT:
            self.chars -= len(self.lines.popleft().text)
            self.first += 1


class CallLog:
    """The latest lines of each function: at most 2,000 lines and 1 Mi characters of each. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._by_function: OrderedDict[str, _Lines] = OrderedDict()

    def finished(self, call: Call, worker: str, report: CallReport) -> None:
        """Keep what a call left behind."""
        lines = [LoggedLine(one.time_ms, call.call_id, worker, one.stream, one.text) for one in report.output]
        if report.error is not None:
            text = f"{type(report.error).__name__}: {report.error}"
            lines.append(LoggedLine(time.time_ns() // 1_000_000, call.call_id, worker, "event", text))
        if not lines:
            return
        with self._changed:
            kept = self._by_function.setdefault(call.function, _Lines())
            self._by_function.move_to_end(call.function)
            for line in lines:
                kept.add(line)
            while len(self._by_function) > _FUNCTIONS_KEPT:
                self._by_function.popitem(last=False)
            self._changed.notify_all()

    def read(self, function: str, *, follow: bool) -> Iterator[LoggedLine | None]:
        """The lines kept, then, if asked to follow, those that come; None every so often while none does."""
        number = 0
        while True:
            with self._changed:
                fresh, number = self._after(function, number)
                if follow and not fresh:
                    self._changed.wait(_WAKE_S)
                    fresh, number = self._after(function, number)
            yield from fresh
            if not follow:
                return
            if not fresh:
                yield None

    def _after(self, function: str, number: int) -> tuple[list[LoggedLine], int]:
        kept = self._by_function.get(function)
        if kept is None:
            return [], number
        start = max(0, number - kept.first)
        return list(kept.lines)[start:], kept.first + len(kept.lines)

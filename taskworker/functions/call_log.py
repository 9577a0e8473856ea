"""What calls printed and logged, as far as is kept, for those who want to read it, or to follow it."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from taskworker.functions.calls import Call, CallReport
from taskworker.functions.records import CallRecords, LineQuery, LoggedLine, RecordBounds
from taskworker.functions.statistics import StatisticsByFunction

log = logging.getLogger(__name__)

_WRITE_AFTER_S = 0.05
"""Lines that come within it are written together."""
_PENDING_MAX = 50_000
"""Lines that wait to be written; where the disk is slower than that, the oldest are dropped, and that is told."""
_FIGURES_EVERY_S = 1.0
_DROP_OLD_EVERY_S = 60.0
_WAKE_S = 0.5
_PAGE = 500


class CallLog:
    """The lines of all functions, and, with them, how their calls do, kept over restarts. Thread-safe.

    Args:
        path: of the file that keeps them; None: in memory.
        bounds: how much is kept.
        statistics: what is kept of figures; restored here.
    """

    def __init__(
        self,
        path: Path | None = None,
        bounds: RecordBounds | None = None,
        statistics: StatisticsByFunction | None = None,
    ) -> None:
        self._records = _opened(path, bounds)
        self._statistics = statistics or StatisticsByFunction()
        for function, document in self._records.figures():
            self._statistics.restore(function, document)
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._pending: deque[tuple[str, LoggedLine]] = deque(maxlen=_PENDING_MAX)
        self._written = 0
        self._closing = threading.Event()
        self._failing = False
        self._writer = threading.Thread(target=self._write_on, name="call log", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what is to be written, and close the file; again does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._writer.join()
        self._flush()
        self._save_figures()
        self._records.close()

    def finished(self, call: Call, worker: str, report: CallReport) -> None:
        """Keep what a call left behind; returns at once."""
        lines = [LoggedLine(one.time_ms, call.call_id, worker, one.stream, one.text) for one in report.output]
        if report.error is not None:
            text = f"{type(report.error).__name__}: {report.error}"
            lines.append(LoggedLine(time.time_ns() // 1_000_000, call.call_id, worker, "event", text))
        if not lines:
            return
        with self._changed:
            lost = len(self._pending) + len(lines) - _PENDING_MAX
            self._pending.extend((call.function, line) for line in lines)
        if lost > 0:
            log.warning("lines of functions come faster than they can be written: %d are dropped", lost)

    def read(self, query: LineQuery, *, tail: int | None = None, follow: bool = False) -> Iterator[LoggedLine | None]:
        """The lines kept, then, if asked to follow, those that come; None every so often while none does.

        Args:
            query: which.
            tail: of those kept, the last so many.
            follow: whether to go on.
        """
        self._flush()
        number = 0 if tail is None else self._records.number_before(query, tail)
        while True:
            page = self._records.lines(query, number, _PAGE)
            if page:
                number = page[-1][0]
                yield from (line for _, line in page)
            elif not follow:
                return
            else:
                yield None
                with self._changed:
                    seen = self._written
                    self._changed.wait_for(lambda seen=seen: self._written != seen, _WAKE_S)  # type: ignore[misc]

    def _write_on(self) -> None:
        figures_at = old_at = time.monotonic()
        while not self._closing.wait(_WRITE_AFTER_S):
            self._flush()
            now = time.monotonic()
            if now >= figures_at:
                self._save_figures()
                figures_at = time.monotonic() + _FIGURES_EVERY_S
            if now >= old_at:
                self._try(self._records.drop_old)
                old_at = now + _DROP_OLD_EVERY_S

    def _flush(self) -> None:
        with self._writing:  # a reader must find what another thread is just writing
            with self._changed:
                lines = list(self._pending)
                self._pending.clear()
            if not lines:
                return
            self._try(lambda: self._records.add(lines))
        with self._changed:
            self._written += len(lines)
            self._changed.notify_all()

    def _save_figures(self) -> None:
        documents = self._statistics.documents()
        if documents is not None:
            self._try(lambda: self._records.save_figures(documents))

    def _try(self, write: Callable[[], None]) -> None:
        """Write; where the disk fails, go on without: calls do not wait for their log."""
        try:
            write()
        except sqlite3.Error as error:
            if not self._failing:
                log.warning("what functions print and how they do cannot be kept: %s", error)
            self._failing = True
        else:
            self._failing = False


def _opened(path: Path | None, bounds: RecordBounds | None) -> CallRecords:
    try:
        return CallRecords(path, bounds)
    except (sqlite3.Error, OSError) as error:
        log.warning("what functions print and how they do is kept in memory only: %s: %s", path, error)
        return CallRecords(None, bounds)

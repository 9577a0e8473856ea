"""The log of what calls printed and logged, which can be read and followed."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from storage.clocks import wall_ms
from storage.errors import StorageError
from taskworker.calls.call import Call, CallReport
from taskworker.calls.large_reports import conversion_permit
from taskworker.functions.routing import former_records
from taskworker.functions.routing.record_formats import Entry, LineQuery, LoggedLine, Position, RecordBounds
from taskworker.functions.routing.records import CallRecords
from taskworker.functions.routing.statistics import StatisticsByFunction

log = logging.getLogger(__name__)

_WRITE_AFTER_S = 0.05
"""Lines that arrive within this time are written together."""
_WRITE_AFTER_S_MAX = 1.0
_OF_DISK_TIME = 10
"""The pause between two writes, in multiples of the time of a write: others need the disk as well."""
_PENDING_BYTES_MAX = 32 << 20
"""Bytes that may wait to be written; if the disk is slower, the oldest lines are dropped, with a note."""
_FIGURES_EVERY_S = 1.0
_DROP_OLD_EVERY_S = 60.0
_WAKE_S = 0.5
_PAGE = 500


class CallLog:
    """The lines of all functions and the statistics of their calls, kept across restarts. Thread-safe.

    Args:
        path: directory that keeps them; None: a temporary one.
        bounds: limits on what is kept.
        statistics: the statistics to keep; restored at construction.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        path: Path | None = None,
        bounds: RecordBounds | None = None,
        statistics: StatisticsByFunction | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._clock_s = clock_s
        self._now_ms = now_ms
        self._records = _opened(path, bounds, now_ms)
        self._statistics = statistics or StatisticsByFunction(clock_s)
        self._restore()
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._arrived = threading.Event()
        self._pending: deque[Entry] = deque()
        self._pending_bytes = 0
        self._dropped = 0
        self._written = 0
        self._closing = threading.Event()
        self._failing = False
        self._writer = threading.Thread(target=self._write_on, name="call log", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what is pending, and close the file, unless already closed."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._arrived.set()
        self._writer.join()
        try:
            self._flush()
            self._save_figures()
        finally:
            self._records.close()

    def finished(self, call: Call, worker: str, report: CallReport) -> None:
        """Record the output and outcome of a call; returns at once."""
        with conversion_permit(len(report.output)):
            entries = _entries_of(call, worker, report, self._now_ms)
        if not entries:
            return
        with self._changed:
            self._pending.extend(entries)
            self._pending_bytes += sum(entry.kept_bytes for entry in entries)
            while self._pending_bytes > _PENDING_BYTES_MAX:
                gone = self._pending.popleft()
                self._pending_bytes -= gone.kept_bytes
                self._dropped += gone.lines
        self._arrived.set()

    def read(self, query: LineQuery, *, tail: int | None = None, follow: bool = False) -> Iterator[LoggedLine | None]:
        """Yield the kept lines; with ``follow``, also new ones, and None periodically while there are none.

        Args:
            query: selects the lines.
            tail: how many of the last kept lines to begin with.
            follow: whether to keep yielding new lines.
        """
        self._flush()
        at = Position() if tail is None else self._records.position_before(query, tail)
        while True:
            with self._changed:
                seen = self._written
            page = self._records.page(query, at, _PAGE)
            at = page.following
            yield from page.lines
            if page.more:
                yield None
            elif not follow:
                return
            else:
                yield None
                with self._changed:
                    self._changed.wait_for(lambda seen=seen: self._written != seen, _WAKE_S)  # type: ignore[misc]

    def _restore(self) -> None:
        try:
            for function, document in self._records.figures():
                self._statistics.restore(function, document)
        except StorageError as error:
            log.warning("the statistics of functions start from zero: %s", error)

    def _write_on(self) -> None:
        old_at, pause_s = self._clock_s(), _WRITE_AFTER_S
        figures_at = self._clock_s() + _FIGURES_EVERY_S
        while not self._closing.is_set():
            self._arrived.wait(_FIGURES_EVERY_S)
            if self._closing.wait(pause_s):
                return
            begun = self._clock_s()
            try:
                self._flush()
                if begun >= figures_at:
                    figures_at = begun + _FIGURES_EVERY_S
                    self._save_figures()
                if begun >= old_at:
                    old_at = begun + _DROP_OLD_EVERY_S
                    self._try(self._records.drop_old)
            except Exception:
                log.exception("writing what calls printed failed; going on with what comes next")
            pause_s = min(_WRITE_AFTER_S_MAX, max(_WRITE_AFTER_S, _OF_DISK_TIME * (self._clock_s() - begun)))

    def _flush(self) -> None:
        with self._writing:  # so that a reader sees what another thread is writing now
            with self._changed:
                self._arrived.clear()
                entries, dropped = list(self._pending), self._dropped
                self._pending.clear()
                self._pending_bytes = self._dropped = 0
            if dropped:
                log.warning("lines of functions come faster than they can be written: %d are dropped", dropped)
            if not entries:
                return
            self._try(lambda: self._records.add(entries))
        with self._changed:
            self._written += len(entries)
            self._changed.notify_all()

    def _save_figures(self) -> None:
        changed = self._statistics.changed()
        if not changed.documents and not changed.gone:
            return
        if self._try(lambda: self._records.save_figures(changed.documents, changed.gone)):
            self._statistics.saved(changed)

    def _try(self, write: Callable[[], None]) -> bool:
        """Write; if the disk fails, carry on without, as calls do not depend on their log."""
        try:
            write()
        except StorageError as error:
            if not self._failing:
                log.warning("the output and statistics of functions cannot be saved: %s", error)
            self._failing = True
        else:
            self._failing = False
        return not self._failing


def _entries_of(call: Call, worker: str, report: CallReport, now_ms: Callable[[], int]) -> list[Entry]:
    lines = [(one.time_ms, one.stream, one.text) for one in report.output]
    if report.error is not None:
        text = f"{type(report.error).__name__}: {report.error}"
        lines.append((now_ms(), "event", text))
    return Entry.all_of(call.function, call.call_id, worker, lines)


def _opened(path: Path | None, bounds: RecordBounds | None, now_ms: Callable[[], int]) -> CallRecords:
    if path is None:
        return CallRecords(None, bounds, now_ms)
    try:
        records = CallRecords(path, bounds, now_ms)
    except (StorageError, OSError) as error:
        log.warning("the output and statistics of functions are kept only until this process ends: %s: %s", path, error)
        return CallRecords(None, bounds, now_ms)
    former = path.with_name("calls.sqlite")
    try:
        former_records.take_over(former, records)
    except (StorageError, OSError) as error:
        log.warning("%s cannot be migrated now: %s", former, error)
    return records

"""Collecting: the pool frees what no file needs any more on a schedule, which outlasts its restarts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from storage import FileStorage
from storage.errors import StorageError
from storage.reports import CollectReport
from storage.runtime import Runtime
from taskworker.errors import CallAbandoned
from taskworker.pool.work import Tranquility, WorkJournal, WorkView

log = logging.getLogger(__name__)

COLLECT = "collect"
COLLECT_EVERY_S = 86400.0
_RETRY_S = 300.0
_LOOK_S_MAX = 60.0  # the wall clock may be set meanwhile


class Collector:
    """A thread that collects when it is time to; see :meth:`storage.FileStorage.collect`.

    What operators have collected counts as well.

    Args:
        store: what to collect.
        journal: where the schedule and outcomes are kept.
        every_s: from one to the next; 0: only when told.
        tranquility: while users are at work, how long to rest after each step, in multiples of the time that
            it took.
        runtime: clocks.
    """

    def __init__(
        self, store: FileStorage, journal: WorkJournal, *, every_s: float, tranquility: float, runtime: Runtime
    ) -> None:
        self._store = store
        self._journal = journal
        self._every_s = every_s
        self._runtime = runtime
        self._closed = threading.Event()
        self._tranquility = Tranquility(tranquility, store.is_busy, self._closed)
        self._running: tuple[float, int, int] | None = None  # since when, done, total
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        store.on_collected = self._note
        self._plan()

    def _plan(self) -> None:
        """Stick to what was planned, unless the setting is another now."""
        planned_ms, latest_ms = self._journal.record(COLLECT).next_ms, self._after_ms(self._every_s)
        if not self._every_s:
            self._journal.plan(COLLECT, 0)
        elif not planned_ms or planned_ms > latest_ms:
            self._journal.plan(COLLECT, latest_ms)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop at the next sign of progress, and wait for that."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def view(self) -> WorkView:
        """What it is at."""
        record, running = self._journal.record(COLLECT), self._running
        if running is None:
            return record.view(COLLECT, "failed" if record.errors else "idle")
        began_s, done, total = running
        left_s = (self._runtime.monotonic_s() - began_s) * (total - done) / done if done else -1.0
        return WorkView(
            COLLECT,
            "running",
            done,
            total,
            "freeing what no file needs",
            left_s,
            errors=record.errors,
            error=record.error,
            ended_ms=record.ended_ms,
            unit="steps",
        )

    def _run(self) -> None:
        while not self._closed.wait(self._pause_s()):
            try:
                self.collect_if_due()
            except CallAbandoned:
                return
            except Exception:
                log.exception("collecting failed unexpectedly")

    def _pause_s(self) -> float:
        next_ms = self._journal.record(COLLECT).next_ms
        return min(_LOOK_S_MAX, max(0.0, (next_ms - self._journal.now_ms()) / 1000)) if next_ms else _LOOK_S_MAX

    def collect_if_due(self) -> bool:
        """Collect if it is time to; whether it was. A failure is kept in the journal, and is tried again later."""
        next_ms = self._journal.record(COLLECT).next_ms
        if not next_ms or next_ms > self._journal.now_ms():
            return False
        began_s = self._runtime.monotonic_s()
        self._running = (began_s, 0, 0)
        try:
            self._store.collect(progress=self._progress(began_s), pace=self._tranquility.rest)
        except CallAbandoned:
            raise  # begun anew by the next pool: it is still due
        except Exception as error:
            log.warning("collecting failed and is tried again: %s", error)
            text = str(error) if isinstance(error, StorageError) else repr(error)
            self._journal.failed(COLLECT, text, self._after_ms(_RETRY_S))
        finally:
            self._running = None
        return True

    def _progress(self, began_s: float) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if self._closed.is_set():
                raise CallAbandoned("the pool is shutting down")
            self._running = (began_s, done, total)

        return progress

    def _note(self, report: CollectReport) -> None:
        """One has ended, whoever wanted it."""
        result = f"removed {report.objects_removed:,} objects, freed {report.bytes_freed / 1e6:,.1f} MB"
        self._journal.ended(COLLECT, result, self._after_ms(self._every_s) if self._every_s else 0)

    def _after_ms(self, seconds: float) -> int:
        return self._journal.now_ms() + int(seconds * 1000)

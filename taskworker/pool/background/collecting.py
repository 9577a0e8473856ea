"""Collecting: the pool frees unneeded space on a schedule, which survives restarts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

from storage import FileStorage
from storage.errors import StorageError
from storage.reports import CollectReport
from storage.runtime import Runtime
from taskworker.errors import CallAbandoned
from taskworker.pool.background.driver import Signals
from taskworker.pool.background.work import Tranquility, WorkJournal
from taskworker.reports import WorkStatus
from taskworker.tracing.spans import SPANS

log = logging.getLogger(__name__)

COLLECT = "collect"
COLLECT_EVERY_S = 86400.0
_RETRY_S = 300.0
_REST_S = 30.0  # after a collect because much could be freed, or longer:
_REST_TIMES = 10.0  # as long as it took: a full pool has millions of objects to examine
_REST_TIMES_PRESSING = 1.0  # if as much could be freed as all files take: otherwise the disks fill faster and faster
_MADE_UP_WAIT_S = 60.0  # to wait for further workers, such as those of a pool that was started again
_LOOK_S_MAX = 15.0  # a user may fill the disks meanwhile
_KEEP_TIME_S = 60.0
_LOOK_WAITING_S = 1.0
_WAIT_S_MAX = 3600.0  # to wait for workers that are away; then space is freed on the others only
_CLOCK_OFF_MS = 60_000  # a larger difference means that the wall clock was set, and the next time is recorded again


class Collector:
    """Runs collects when they are due (a ``BackgroundWork``); see :meth:`storage.FileStorage.collect`.

    A collect that an operator ran counts as well. A due collect waits up to an hour for workers that are away. If a
    worker missed a collect, another one makes up for it as soon as that worker is back, whatever the schedule: until
    then it may be full of what no file needs. That one waits for others for a minute only. So does one that begins
    because much could be freed (``Upkeep.is_collect_worthwhile``): whoever stores and deletes in a loop does not fill
    the disks until the next one is due. If that is as much as all files take, it does not give way to users, who may be
    the one who does so.

    The time until the next collect is measured by the monotonic clock: the wall clock only tells how much of that time
    passed while the pool was stopped.

    Args:
        store: the store to collect in.
        journal: stores the schedule and outcomes.
        every_s: seconds from one collect to the next; 0: none, except to make up for one that a worker missed.
        tranquility: while users are active, how long to rest after each step, in multiples of the time that it took.
        runtime: clocks.
    """

    name = "collector"
    failure_text = "collecting failed and is tried again: %s"
    fault_text = "collecting failed unexpectedly"

    def __init__(
        self, store: FileStorage, journal: WorkJournal, *, every_s: float, tranquility: float, runtime: Runtime
    ) -> None:
        self._store = store
        self._journal = journal
        self._every_s = every_s
        self._runtime = runtime
        self.signals = Signals()
        self._tranquility = Tranquility(tranquility, store.is_busy, self.signals.closing, runtime.monotonic_s)
        self._running: tuple[float, int, int] | None = None  # start time, steps done, steps in total
        self._due_s = math.inf  # by the monotonic clock
        self._makes_up = False  # the next collect is out of turn: it makes up for an earlier one, or frees much
        self._made_up_s = -math.inf  # when such a collect ended
        self._took_s = 0.0  # and how long it took
        self._presses = False  # somebody fills the disks, so the next collect does not give way to users
        self._kept_s = runtime.monotonic_s()
        store.upkeep.on_collected = self._note
        self._plan()

    def _plan(self) -> None:
        """Go on with the stored schedule.

        If its next time is more than ``every_s`` away, because the setting or the clock changed, plan the next collect
        again.
        """
        now_s, now_ms = self._runtime.monotonic_s(), self._journal.now_ms()
        planned_ms, latest_ms = self._journal.record(COLLECT).next_ms, self._after_ms(self._every_s)
        if not self._every_s:
            self._journal.plan(COLLECT, 0)
            return
        if not planned_ms or planned_ms > latest_ms:
            planned_ms = latest_ms
            self._journal.plan(COLLECT, planned_ms)
        self._due_s = now_s + max(0, planned_ms - now_ms) / 1000

    def views(self) -> list[WorkStatus]:
        """See :meth:`ShownWork.views`."""
        return [self.view()]

    def view(self) -> WorkStatus:
        """The status of collecting."""
        record, running = self._journal.record(COLLECT), self._running
        if running is None:
            waits = bool(record.error) and not record.errors
            view = record.view(COLLECT, "failed" if record.errors else "waiting" if waits else "idle")
            return replace(view, note=record.error, error="") if waits else view
        began_s, done, total = running
        left_s = (self._runtime.monotonic_s() - began_s) * (total - done) / done if done else -1.0
        return WorkStatus(
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

    def pause_s(self) -> float:
        """See :meth:`BackgroundWork.pause_s`."""
        left_s = self._due_s - self._runtime.monotonic_s()
        return min(_LOOK_S_MAX, max(_LOOK_WAITING_S if left_s <= 0 else 0.0, left_s))

    def step(self) -> None:
        """Collect if that is due, and record how long the pool has been running."""
        self.collect_if_due()
        self._keep_time()

    def note_failure(self, error: Exception) -> None:
        """See :meth:`BackgroundWork.note_failure`. The collect stays due."""

    def stop(self) -> None:
        """See :meth:`BackgroundWork.stop`."""
        self.signals.close()

    def _keep_time(self) -> None:
        """Record how long the pool has been running; see :meth:`storage.FileStorage.keep_time`."""
        now_s = self._runtime.monotonic_s()
        if now_s - self._kept_s >= _KEEP_TIME_S:
            self._kept_s = now_s
            self._store.upkeep.keep_time()

    def collect_if_due(self) -> bool:
        """Collect if that is due; return whether it was.

        A failure is recorded in the journal, and the collect is retried later.
        """
        began_s = self._runtime.monotonic_s()
        if self._due_s > began_s and self._is_owed(began_s):
            self._due_s, self._makes_up = began_s, True
        if self._due_s > began_s:
            self._correct_plan(began_s)
            return False
        why = self._awaits(began_s)
        if why:
            self._journal.waits(COLLECT, why)
            return False
        self._running = (began_s, 0, 0)
        try:
            pace = None if self._presses else self._tranquility.rest
            with SPANS.internal("collect"):
                self._store.collect(progress=self._progress(began_s), pace=pace)
        except CallAbandoned:
            raise  # still due: the next process of the pool starts it from the beginning
        except Exception as error:
            unforeseen = None if isinstance(error, StorageError) else error
            log.warning("collecting failed and is tried again: %s", error, exc_info=unforeseen)
            text = str(error) if isinstance(error, StorageError) else repr(error)
            self._due_s = self._runtime.monotonic_s() + _RETRY_S
            self._journal.failed(COLLECT, text, self._after_ms(_RETRY_S))
        finally:
            self._running = None
        return True

    def _is_owed(self, now_s: float) -> bool:
        """Whether a collect should run now, out of turn: a worker is back that missed one, or much could be freed.

        There is a pause after each, since that worker may come and go, and users may go on.
        """
        if self._store.needs_rebuild:
            return False
        upkeep, rested_s = self._store.upkeep, now_s - self._made_up_s
        self._presses = bool(self._every_s) and rested_s >= _REST_S and upkeep.is_collect_pressing()
        rest_s = max(_REST_S, (_REST_TIMES_PRESSING if self._presses else _REST_TIMES) * self._took_s)
        if self._every_s and rested_s >= rest_s and upkeep.is_collect_worthwhile():
            return True
        return rested_s >= _RETRY_S and upkeep.is_collect_owed()

    def _awaits(self, now_s: float) -> str:
        """What a due collect waits for; empty: nothing."""
        away = self._store.upkeep.stores_away()
        if away is None:
            return "no worker is connected yet"
        if away and now_s - self._due_s < (_MADE_UP_WAIT_S if self._makes_up else _WAIT_S_MAX):
            return f"worker {', '.join(away)} is away" if len(away) == 1 else f"workers {', '.join(away)} are away"
        return ""

    def _correct_plan(self, now_s: float) -> None:
        """If the wall clock was set, record the time of the next collect by the clock as it is now."""
        next_ms = self._after_ms(self._due_s - now_s) if math.isfinite(self._due_s) else 0
        if abs(next_ms - self._journal.record(COLLECT).next_ms) > _CLOCK_OFF_MS:
            self._journal.plan(COLLECT, next_ms)

    def _progress(self, began_s: float) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            self.signals.check_open()
            self._running = (began_s, done, total)

        return progress

    def _note(self, report: CollectReport) -> None:
        """Record that a collect has ended, whoever started it."""
        result = f"removed {report.objects_removed:,} objects, freed {report.bytes_freed / 1e6:,.1f} MB"
        if report.stores_missed:
            missed = "1 worker" if report.stores_missed == 1 else f"{report.stores_missed} workers"
            result += f"; {missed} missed it; another collect follows once they are back"
        now_s = self._runtime.monotonic_s()
        if self._makes_up:
            self._makes_up, self._made_up_s = False, now_s
            self._took_s = now_s - self._running[0] if self._running is not None else 0.0
        self._due_s = now_s + self._every_s if self._every_s else math.inf
        self._journal.ended(COLLECT, result, self._after_ms(self._every_s) if self._every_s else 0)

    def _after_ms(self, seconds: float) -> int:
        return self._journal.now_ms() + int(seconds * 1000)

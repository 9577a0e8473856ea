"""An executor for calls that mostly take a fraction of a millisecond.

With a thread for each running call, every call wakes a thread, which then contends with all others for the GIL.
Measured with 16 callers on two cores: calls whose handler takes 55 µs ran at 3,900 a second in up to 80 threads, and at
7,400 in four. But a call may also have to wait, for a disk or a worker, and must not hold up others meanwhile. So few
threads make all calls as long as calls keep ending, and more help them while none is taken from the queue.

On a busy machine, it may be that none is taken because no thread got a processor. More threads would then only take
more of its time: with 16 callers beside other programs, a get took the pool 0.40 ms of processor time instead of 0.28.
The thread that looks after the calls finds out by waking up late itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty
from typing import Any, ParamSpec, Protocol, TypeVar

from storage.clocks import monotonic_s

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

log = logging.getLogger("taskworker.services")

_FEW = 4
_TICK_S = 0.005
_LATE_S = 2 * _TICK_S  # whoever sleeps for a tick and wakes up after this long had to wait for a processor
_STUCK_S = 0.05  # even then, calls do not wait longer for help
_IDLE_S = 0.05  # a helper that found nothing to do for so long ends


class Work(Protocol):
    """Something to do in one of the threads. It raises nothing."""

    @property
    def future(self) -> Future[Any]:
        """Ends with it."""

    def run(self) -> None:
        """Do it."""


class QuickThreads(ThreadPoolExecutor):
    """Makes calls in few threads while they are quick, and in up to ``most`` otherwise.

    Args:
        most: how many threads at most.
        few: how many threads while no call takes long.
        clock_s: monotonic seconds.
    """

    def __init__(self, most: int, few: int = _FEW, clock_s: Callable[[], float] = monotonic_s) -> None:
        super().__init__(few, thread_name_prefix="quick")
        self._clock_s = clock_s
        self._helpers_max = max(0, most - few)
        self._guard = threading.Lock()
        self._helpers: set[threading.Thread] = set()
        self._allowed = 0  # how many helpers may run
        self._submitted = 0
        self._under_way = 0  # calls that have not ended
        self._watcher: threading.Thread | None = None
        self._crowded = threading.Event()
        self._ended = False

    def submit(self, fn: Callable[P, ResultT], /, *args: P.args, **kwargs: P.kwargs) -> Future[ResultT]:
        """See ``Executor.submit``."""
        future = super().submit(fn, *args, **kwargs)
        self._note(future)
        return future

    def put(self, work: Work) -> None:
        """Have work done, as by :meth:`submit`, which makes more of it.

        Raises:
            RuntimeError: the threads have ended.
        """
        with self._shutdown_lock:
            if self._shutdown:
                raise RuntimeError("cannot make calls after the end of the threads for them")
            self._work_queue.put(work)  # type: ignore[arg-type]  # an item of the base class's does no more
            try:
                self._adjust_thread_count()
            except RuntimeError as error:  # the threads that there are do it, or a helper
                log.warning("a call waits, and no thread can be started for it now: %s", error)
        self._note(work.future)

    def _note(self, future: Future[Any]) -> None:
        self._submitted += 1  # by gRPC's one thread; if another one interfered, the watcher would look once more
        with self._guard:
            self._under_way += 1
        future.add_done_callback(self._note_done)
        # If there is a thread for each call, the call is about to be taken. To wake the watcher as well would cost as
        # much as a small call does: its thread and that of the call would contend for the GIL.
        if self._under_way > len(self._threads) and self._work_queue.qsize() and not self._crowded.is_set():
            self._watch()

    def _note_done(self, _future: Future[Any]) -> None:
        with self._guard:
            self._under_way -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See ``Executor.shutdown``."""
        self._ended = True
        self._crowded.set()
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            with self._guard:
                helpers = list(self._helpers)
            for thread in helpers:
                thread.join()

    def _watch(self) -> None:
        with self._guard:
            if self._watcher is None and not self._ended:
                watcher = threading.Thread(target=self._look, name="quick-watch", daemon=True)
                try:
                    watcher.start()
                except RuntimeError as error:  # with the next call that waits, it is tried again
                    log.warning("calls wait, and no thread can be started to look after them now: %s", error)
                    return
                self._watcher = watcher
        self._crowded.set()

    def _look(self) -> None:
        """While calls wait, add helpers if none of the calls is taken, and let helpers end if calls flow."""
        before, taken_s = -1, self._clock_s()
        while not self._ended:
            self._crowded.wait()
            asleep_s = self._clock_s()
            time.sleep(_TICK_S)
            now_s = self._clock_s()
            waiting = self._work_queue.qsize()
            taken = self._submitted - waiting
            if not waiting or taken != before:
                taken_s = now_s
                self._allowed = max(0, self._allowed - 1) if waiting else 0
                if not waiting:
                    self._crowded.clear()
            elif now_s - asleep_s < _LATE_S or now_s - taken_s >= _STUCK_S:
                self._help(waiting)
            before = taken

    def _help(self, waiting: int) -> None:
        self._allowed = min(self._helpers_max, len(self._helpers) + waiting)
        with self._guard:
            while len(self._helpers) < self._allowed:
                helper = threading.Thread(target=self._make_calls, name="quick-helper", daemon=True)
                self._helpers.add(helper)
                try:
                    helper.start()
                except RuntimeError as error:  # the machine has no thread for the moment
                    self._helpers.discard(helper)
                    log.warning("calls wait, and no thread can be started for them now: %s", error)
                    return

    def _make_calls(self) -> None:
        while len(self._helpers) <= self._allowed:
            try:
                item: Any = self._work_queue.get(timeout=_IDLE_S)
            except Empty:
                break
            if item is None:
                self._work_queue.put(item)  # type: ignore[arg-type]  # the sign to end is for the base class's threads
                break
            item.run()
            del item
        with self._guard:
            self._helpers.discard(threading.current_thread())


class OftenMadeCalls:
    """Threads for the calls that are made often.

    Args:
        most: how many of either kind there are at most.

    Attributes:
        quick: for calls that usually take less than a millisecond.
        waiting: for calls that wait for disks and workers, each of which gets a thread.
    """

    def __init__(self, most: int) -> None:
        self.quick = QuickThreads(most)
        self.waiting = QuickThreads(most, few=most)

    def shutdown(self) -> None:
        """Take no more calls, and wait until those under way have ended."""
        self.quick.shutdown()
        self.waiting.shutdown()

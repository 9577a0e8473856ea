"""Routes calls: waits for a permit, chooses a worker, and another one if that is lost.

It chooses the less busy of two random workers ("the power of two choices", Mitzenmacher, IEEE TPDS 12(10), 2001). This
is nearly as good as comparing all, and callers do not all choose the same one. How busy a worker is means how long a
call would take there: the number of its calls, times its recent latency relative to the others.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from weakref import WeakValueDictionary

from blake3 import blake3
from cachetools import LRUCache, TLRUCache

from storage.errors import DataLossError, InsufficientWorkers
from taskworker.calls.call import Call, CallReport, Items, RunningCall
from taskworker.calls.concurrency import Places, pool_places
from taskworker.errors import (
    CallAbandoned,
    CallUncertain,
    FunctionNotFound,
    FunctionsUnavailable,
    ServerBusy,
    StorageUnavailable,
)
from taskworker.functions.routing.concurrency import ConcurrencyLimiter, Permit
from taskworker.functions.routing.dispatch import Dispatch, Found
from taskworker.functions.routing.latency import Latencies
from taskworker.functions.routing.port import FunctionFigures, RoutedFunction, WorkerGone, Workers, WorkerUnable
from taskworker.functions.routing.statistics import CallStatistics, StatisticsByFunction
from taskworker.functions.routing.streamed import CACHED_RESULT_BYTES_MAX, Given, Until, item_bytes
from taskworker.functions.routing.tried import WAIT_FOR_WORKERS_S, Tried
from taskworker.functions.routing.users import UserCalls, UserShares

_CACHE_BYTES = 64 << 20
_LOOK_AGAIN_S = 0.05
_HOMES_MAX = 4_096
_HOME_BUSIER = 2.0
"""A worker that has a process of the user may be this many times busier, since starting a process takes longer."""


@dataclass(slots=True)
class _Cached:
    function: str
    items: tuple[str, ...]
    ttl_s: float


class CallRouter:
    """Routes calls to workers. Thread-safe.

    Args:
        find: returns a function by name; None if there is none.
        workers: the workers that run calls.
        finished: called after each call, with its worker and its report.
        statistics: counts the calls.
        shares: the shares of users.
        places: limits how many calls run.
        clock_s: monotonic seconds.
        rng: chooses the workers that are compared.
    """

    def __init__(
        self,
        find: Callable[[str], RoutedFunction | None],
        workers: Workers,
        finished: Callable[[Call, str, CallReport], None] = lambda _call, _worker, _report: None,
        statistics: StatisticsByFunction | None = None,
        shares: UserShares | None = None,
        places: Places | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._shares = shares or UserShares()
        self._places = places or pool_places(self._shares.weight_of)
        self._dispatch = Dispatch(self._shares.weight_of, clock_s)
        self._users = UserCalls(self._shares, clock_s)
        self._find = find
        self._workers = workers
        self._finished = finished
        self._clock_s = clock_s
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._outstanding: Counter[str] = Counter()
        self._latencies = Latencies(clock_s)
        self._homes: LRUCache[tuple[str, str], str] = LRUCache(_HOMES_MAX)  # which worker ran a user's last call
        self._limiters: WeakValueDictionary[str, ConcurrencyLimiter] = WeakValueDictionary()  # while there are calls
        self._running: dict[str, _Running] = {}  # calls that run on workers, by token
        self._statistics = statistics or StatisticsByFunction(clock_s)
        self._cache: TLRUCache[object, _Cached] = TLRUCache(
            maxsize=_CACHE_BYTES,
            ttu=lambda _key, cached, now: now + cached.ttl_s,
            timer=clock_s,
            getsizeof=lambda cached: sum(map(item_bytes, cached.items)) + 512,
        )

    def call(self, call: Call, timeout_s: float | None, running: RunningCall | None = None) -> str:
        """Call a function, and return its result as JSON.

        Args:
            call: what is called.
            timeout_s: how long all of it may take; None: the function's own limits.
            running: lets another thread end it.

        Raises:
            FunctionNotFound: there is no such function.
            FunctionBusy: as many calls of the function run and wait as are allowed.
            ServerBusy: as many calls run as are allowed; a nested call should be retried (``nested.patiently``).
            FunctionsUnavailable: no worker can run it.
            CallUncertain: its worker was lost, and it must not run twice.
            CallAbandoned: ``running`` was ended.
            StorageError: the call itself failed.
        """
        deadline, running = Until(timeout_s, self._clock_s), running or RunningCall()
        with self._admitted(call, deadline, running) as mine:
            function = self._found(mine.function, deadline)
            key = _cache_key(function, mine) if function.cache_ttl_s else None
            if key is not None and (found := self._cached(key)) is not None:
                self._statistics_of(function.name).from_cache()
                return found[0]
            with self._permit(function, mine, deadline, running) as permit:
                report = self._run(function, mine, deadline, running, permit)
        if report.error is not None:
            raise report.error
        if key is not None and item_bytes(report.result) <= CACHED_RESULT_BYTES_MAX:
            self._keep(function, key, (report.result,))
        return report.result

    def stream(self, call: Call, timeout_s: float | None, running: RunningCall, items: Items) -> None:
        """Call a function, and pass on its items as they arrive; the result of a non-generator is a single item.

        Once an item has been passed on, the call is not run again elsewhere.

        Args:
            call: what is called.
            timeout_s: how long all of it may take; None: the function's own limits.
            running: lets another thread end it.
            items: receives the items, as JSON.

        Raises:
            CallUncertain: as for :meth:`call`, and if the worker was lost after it gave an item.
            StorageError: as for :meth:`call`.
        """
        deadline = Until(timeout_s, self._clock_s)
        with self._admitted(call, deadline, running) as mine:
            function = self._found(mine.function, deadline)
            given = Given(items, function, self._clock_s)
            key = ("stream", _cache_key(function, mine)) if function.cache_ttl_s else None
            if key is not None and (found := self._cached(key)) is not None:
                self._statistics_of(function.name).from_cache()
                for item in found:
                    items(item, lambda: False)  # cached items fit into what may be sent ahead
                return
            with self._permit(function, mine, deadline, running) as permit:
                report = self._run(function, mine, deadline, running, permit, given)
        if report.error is not None:
            raise report.error
        given.require_all()
        if key is not None and given.kept is not None:
            self._keep(function, key, tuple(given.kept))

    def figures(self, name: str) -> FunctionFigures:
        """Statistics of a function's calls."""
        with self._lock:
            limiter = self._limiters.get(name)
        running, waiting = (0, 0) if limiter is None else limiter.counts()
        return FunctionFigures(self._statistics.figures(name), running, waiting)

    def forget(self, name: str) -> None:
        """Drop everything known about the calls of a function that was removed."""
        self._statistics.forget(name)
        with self._lock:
            self._latencies.forget(name)
            for key in [key for key, cached in self._cache.items() if cached.function == name]:
                del self._cache[key]
            for home in [home for home in self._homes if home[0] == name]:
                del self._homes[home]

    def outstanding(self) -> dict[str, int]:
        """Number of running calls by worker."""
        with self._lock:
            return dict(self._outstanding)

    def _found(self, name: str, deadline: Until) -> RoutedFunction:
        """Find a function; waits, as just after a pool's start the workers with its bundle may not have joined yet."""
        give_up = self._clock_s() + WAIT_FOR_WORKERS_S
        while True:
            try:
                function = self._find(name)
            except (DataLossError, InsufficientWorkers, StorageUnavailable):
                if self._clock_s() > give_up:
                    raise
            else:
                if function is None:
                    raise FunctionNotFound(f"there is no function {name!r}; `taskworker functions` lists them")
                return function
            time.sleep(min(_LOOK_AGAIN_S, deadline.left_s() or _LOOK_AGAIN_S))

    # -- permits and the cache -----------------------------------------------------------------------

    @contextlib.contextmanager
    def _admitted(self, call: Call, deadline: Until, running: RunningCall) -> Iterator[Call]:
        """Hold a place for a call, and mark the outer call, if there is one, as waiting; yields the completed call.

        A call counts as nested only if it has the token of a running call.
        """
        with ExitStack() as held:
            if call.parent:
                parent = self._parent_of(call)
                call = parent.nested(call).checked()
                if parent.permit is not None:
                    held.enter_context(parent.permit.waiting())
                held.enter_context(self._places.one(len(call.chain), call.user_id))
            else:
                call = replace(call.checked(), chain=())
                held.enter_context(self._places.one(0, call.user_id))
                # Nested calls are not counted: they are part of a call of the user, which would wait for itself.
                held.enter_context(self._users.one(call.user_id, deadline.left_s(), running))
            yield call

    def _parent_of(self, call: Call) -> _Running:
        with self._lock:
            parent = self._running.get(call.parent)
        if parent is None:
            raise CallAbandoned("the call that asked is over")
        return parent

    def _permit(
        self, function: RoutedFunction, call: Call, deadline: Until, running: RunningCall
    ) -> AbstractContextManager[Permit | None]:
        if function.name in call.chain:
            # The function waits for itself: it might never get another permit.
            return contextlib.nullcontext()
        return self._limiter_of(function.name).permit(
            function.concurrency,
            function.queue,
            deadline.left_s(),
            running,
            call.user_id,
            nested=bool(call.parent),
        )

    def _limiter_of(self, name: str) -> ConcurrencyLimiter:
        with self._lock:
            return self._limiters.setdefault(name, ConcurrencyLimiter(name, self._shares.weight_of, self._clock_s))

    def _statistics_of(self, name: str) -> CallStatistics:
        return self._statistics.of(name)

    def _cached(self, key: object) -> tuple[str, ...] | None:
        with self._lock:
            found = self._cache.get(key)
        return None if found is None else found.items

    def _keep(self, function: RoutedFunction, key: object, items: tuple[str, ...]) -> None:
        with self._lock:
            self._cache[key] = _Cached(function.name, items, function.cache_ttl_s)

    # -- workers -------------------------------------------------------------------------------------

    def _run(
        self,
        function: RoutedFunction,
        call: Call,
        deadline: Until,
        running: RunningCall,
        permit: Permit | None,
        given: Given | None = None,
    ) -> CallReport:
        statistics = self._statistics_of(function.name)
        started = self._clock_s()
        failed = True
        try:
            report = self._run_somewhere(function, call, deadline, running, permit, statistics, given)
            failed = report.error is not None
            return report
        finally:
            statistics.ended(self._clock_s() - started, failed=failed)

    def _run_somewhere(
        self,
        function: RoutedFunction,
        call: Call,
        deadline: Until,
        running: RunningCall,
        permit: Permit | None,
        statistics: CallStatistics,
        given: Given | None,
    ) -> CallReport:
        tried = Tried(deadline.left_s(), self._clock_s)
        while True:
            try:
                with self._placed(function, call, tried, deadline, running, permit) as worker:
                    report = self._invoke(worker, function, call, deadline, running, permit, given)
            except WorkerGone as gone:
                tried.lost(gone.worker, may_have_run=gone.may_have_run)
                _require_repeatable(function, gone, given, tried)
                statistics.was_moved()
            except WorkerUnable as error:
                tried.unable(worker, f"cannot run it: {error}")
            except ServerBusy:
                tried.full(worker)
            else:
                self._users.took(call.user_id, report.cpu_s)
                self._finished(call, worker, report)
                return report

    def _invoke(
        self,
        worker: str,
        function: RoutedFunction,
        call: Call,
        deadline: Until,
        running: RunningCall,
        permit: Permit | None,
        given: Given | None,
    ) -> CallReport:
        with self._counted(function, call.user_id, worker) as ended, self._with_token(call, permit) as run:
            report = self._workers.invoke(worker, function, run, deadline.left_s(), running, given)
            ended(report)
            return report

    def _placed(
        self,
        function: RoutedFunction,
        call: Call,
        tried: Tried,
        deadline: Until,
        running: RunningCall,
        permit: Permit | None,
    ) -> AbstractContextManager[str]:
        """Hold a place at a worker that can run the call, preferably one that has not failed it before.

        Waits for a worker to join or come back, or for a place to become free.

        Raises:
            FunctionsUnavailable: there was no such worker for too long; the text says why.
        """

        def look() -> Found | None:
            tried.look_again()
            return None if running.cancelled else self._place_now(function, call, tried)

        def again() -> None:
            if running.cancelled:
                raise CallAbandoned(f"the call of {function.name} was cancelled")
            if tried.is_enough() or (tried.in_vain and deadline.is_over):
                obstacles = self._workers.obstacles(function)
                raise FunctionsUnavailable(tried.told(function.name, function.needs, obstacles))
            tried.again()

        if running.cancelled:
            raise CallAbandoned(f"the call of {function.name} was cancelled")
        return self._dispatch.place(
            call.user_id,
            look,
            again,
            lambda: min(_LOOK_AGAIN_S, deadline.left_s() or _LOOK_AGAIN_S),
            contextlib.nullcontext if permit is None else permit.waiting,
        )

    def _place_now(self, function: RoutedFunction, call: Call, tried: Tried) -> Found | None:
        while fresh := tried.fresh(self._workers.able(function)):
            worker, place = self._less_busy(function, call.user_id, fresh), ExitStack()
            try:
                place.enter_context(self._workers.place(worker, call))
            except ServerBusy:
                tried.full(worker)
            else:
                return worker, place
        return None

    @contextlib.contextmanager
    def _with_token(self, call: Call, permit: Permit | None) -> Iterator[Call]:
        """Add a token to a call, by which its nested calls and requests are recognized while it runs."""
        call = replace(call, token=secrets.token_hex(16))
        with self._lock:
            self._running[call.token] = _Running(call, permit)
        try:
            yield call
        finally:
            with self._lock:
                del self._running[call.token]

    def _less_busy(self, function: RoutedFunction, user: str, workers: list[str]) -> str:
        """The less busy of two workers; one of them is the worker with the user's process, if there is one."""
        if len(workers) == 1:
            return workers[0]
        two = self._rng.sample(workers, 2)
        with self._lock:
            home = self._homes.get((function.name, user)) if function.keeps else None
            if home in workers and home not in two:
                two[0] = home
            slowness = self._latencies.slowness(function.name, two)

            def busy(worker: str) -> float:
                calls = (self._outstanding[worker] + 1) * slowness[worker]
                return calls / _HOME_BUSIER if worker == home else calls

            return min(two, key=busy)

    @contextlib.contextmanager
    def _counted(self, function: RoutedFunction, user: str, worker: str) -> Iterator[Callable[[CallReport], None]]:
        """Count a call as running on a worker; yields a callback for its report."""
        started = self._clock_s()

        def ended(report: CallReport) -> None:
            with self._lock:
                if function.keeps:
                    self._homes[function.name, user] = worker
                if report.error is None:  # a call that fails at once does not make a worker fast
                    self._latencies.took(function.name, worker, self._clock_s() - started)

        with self._lock:
            self._outstanding[worker] += 1
        try:
            yield ended
        finally:
            with self._lock:
                self._outstanding[worker] -= 1
                if not self._outstanding[worker]:
                    del self._outstanding[worker]


def _require_repeatable(function: RoutedFunction, gone: WorkerGone, given: Given | None, tried: Tried) -> None:
    """Raise CallUncertain if a call whose worker was lost must not run again."""
    if gone.may_have_run and not function.idempotent:
        raise CallUncertain(
            f"worker {gone.worker} was lost during a call of {function.name}, which is not idempotent: it may "
            "have run, or not; check what it did before calling it again"
        ) from gone
    if given is not None and given.any:
        raise CallUncertain(
            f"worker {gone.worker} was lost during a call of {function.name}, after some of its results were "
            "delivered; call it again to get all of them"
        ) from gone
    if tried.too_many_lost:
        raise CallUncertain(
            f"worker {gone.worker} was lost during a call of {function.name}, like others before it: this call may be "
            "the cause; see their logs before calling it again"
        ) from gone


@dataclass(frozen=True, slots=True)
class _Running:
    """A call that runs on a worker, and its permit, if it has one of its own."""

    call: Call
    permit: Permit | None

    def nested(self, call: Call) -> Call:
        """Complete a call that this call makes."""
        mine = self.call
        return replace(call, chain=(*mine.chain, mine.function), user_id=mine.user_id, call_id=mine.call_id)


def _cache_key(function: RoutedFunction, call: Call) -> object:
    """The key of a call's result: of arguments, which may be large, it has a digest."""
    texts = [str(len(call.args)), *call.args, *chain.from_iterable(sorted(call.kwargs.items()))]
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    digest = blake3(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
    return function.name, function.version, call.user_id, digest

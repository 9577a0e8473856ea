"""Keeps track of which workers can run which functions, by their offers, and sends calls to them."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

from taskworker.calls.call import Call, CallReport, Items, RunningCall
from taskworker.calls.concurrency import Places, worker_places
from taskworker.calls.labels import lacking, text_of
from taskworker.calls.platform import Platform, best_of
from taskworker.calls.redaction import CallRedactors
from taskworker.errors import FunctionsUnavailable, NotJoined, ServerBusy, WorkerRefused
from taskworker.functions.routing.port import RoutedFunction, WorkerGone
from taskworker.pool.membership import Membership

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmFunction:
    """A function's warm processes on a worker; memory is the proportional set size in bytes."""

    function: str
    worker: str
    processes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Offer:
    """The functions that a worker's process offers to run.

    Attributes:
        worker: id of the worker.
        instance: random name of its process.
        hosts_deployed: whether it runs deployed functions.
        functions: functions that its own program declares, by name.
        warm: functions that have processes there.
        labels: labels of the worker.
        address: address of a worker without a volume; empty: the worker is a member of the pool.
        unavailable: why it does not run deployed functions.
        platform: its platform for compiled packages, if known.
    """

    worker: str
    instance: str
    hosts_deployed: bool
    functions: dict[str, RoutedFunction] = field(default_factory=dict)
    warm: tuple[WarmFunction, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    unavailable: str = ""
    platform: Platform | None = None


@dataclass(frozen=True, slots=True)
class HostView:
    """The state of a worker that runs functions; ``functions`` are those of its own program, ``platform`` is a tag."""

    worker: str
    address: str
    has_volume: bool
    hosts_deployed: bool
    labels: Mapping[str, str]
    functions: tuple[str, ...]
    running: int
    platform: str


_PREPARE_TIMEOUT_S = 120.0
_OFFERS_TAKE_S = 5.0
_LOOK_AGAIN_S = 0.05
_NAMED_MAX = 8
LEASE_S = 4.0
"""How long the offer of a worker without a volume is valid; it is renewed every second."""


class Transport(Protocol):
    """Sends calls to workers' processes."""

    def invoke(
        self,
        worker: str,
        address: str,
        function: RoutedFunction,
        call: Call,
        timeout_s: float | None,
        running: RunningCall,
        items: Items | None = None,
    ) -> CallReport:
        """See ``taskworker.functions.routing.port.Workers.invoke``."""

    def prepare(self, worker: str, address: str, function: RoutedFunction, timeout_s: float) -> None:
        """Have a worker import a function that is not deployed yet.

        Raises:
            WorkerGone: the worker was lost.
            ServerBusy: the worker cannot import it now.
            StorageError: the function cannot be imported; the error says why.
        """

    def abandon(self, worker: str) -> None:
        """Make a worker's running calls fail with WorkerGone."""


class Hosting:
    """The ``Workers`` of routing: the pool's workers that run calls. Thread-safe.

    Args:
        membership: knows which workers are alive.
        transport: sends calls to them.
        weight_of: returns a user's weight; a user with twice the weight gets twice as many places at a worker.
        clock_s: monotonic seconds.

    Attributes:
        redactors: redact secrets that calls were given from their output and errors.
    """

    def __init__(
        self,
        membership: Membership,
        transport: Transport,
        weight_of: Callable[[str], float] = lambda _user: 1.0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._membership = membership
        self._transport = transport
        self._weight_of = weight_of
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._offers: dict[str, Offer] = {}
        self._leases: dict[str, float] = {}  # of workers without volumes: monotonic end times
        self._places: WeakValueDictionary[str, Places] = WeakValueDictionary()  # while there are calls
        self._under_way: dict[str, tuple[Call, str]] = {}  # with the worker at which it is
        self._bundles: Counter[tuple[str, str, str]] = Counter()  # worker, file and version of what workers may need
        self._running: Counter[str] = Counter()
        self.redactors = CallRedactors()

    def offer(self, offer: Offer) -> None:
        """Record what a worker offers to run.

        Raises:
            NotJoined: this process has no lease.
            WorkerRefused: the worker has no volume, and uses the id of another worker.
        """
        if not offer.address and self._membership.address_of(offer.worker, offer.instance) is None:
            raise NotJoined(f"the pool holds no lease of worker {offer.worker}; join again")
        with self._lock:
            if offer.address:
                self._check_id(offer)
                self._leases[offer.worker] = self._clock_s() + LEASE_S
            self._offers[offer.worker] = offer

    def _check_id(self, offer: Offer) -> None:
        other = self._offers.get(offer.worker)
        is_another = other is not None and other.instance != offer.instance and self._is_alive(other)
        if is_another or self._membership.record(offer.worker) is not None:
            raise WorkerRefused(
                f"there is a worker with the id {offer.worker} already; choose another id, or stop that one, or, if it "
                "had a volume and is gone for good, `taskworker forget` it"
            )

    def is_without_volume(self, worker: str) -> bool:
        """Whether the worker with this id only runs functions, and is not a member of the pool."""
        with self._lock:
            offer = self._offers.get(worker)
        return offer is not None and bool(offer.address) and self._is_alive(offer)

    def withdraw(self, worker: str, instance: str) -> None:
        """Note that a worker without a volume stops."""
        with self._lock:
            offer = self._offers.get(worker)
            if offer is None or offer.instance != instance or not offer.address:
                return
            del self._offers[worker]
            self._leases.pop(worker, None)

    def hosts(self) -> list[HostView]:
        """The workers that run functions, by id."""
        with self._lock:
            offers = [self._offers[worker] for worker in sorted(self._offers)]
            running = dict(self._running)
        return [
            HostView(
                worker=offer.worker,
                address=address,
                has_volume=not offer.address,
                hosts_deployed=offer.hosts_deployed,
                labels=offer.labels,
                functions=tuple(sorted(offer.functions)),
                running=running.get(offer.worker, 0),
                platform=offer.platform.tag if offer.platform is not None else "",
            )
            for offer in offers
            if (address := self._address_of(offer)) is not None
        ]

    def look(self) -> None:
        """Drop the offers of processes that are gone, and move their calls; call this a few times a second."""
        with self._lock:
            gone = [offer for offer in self._offers.values() if not self._is_alive(offer)]
            for offer in gone:
                del self._offers[offer.worker]
                self._leases.pop(offer.worker, None)
        for offer in gone:
            try:
                self._transport.abandon(offer.worker)
            except Exception:
                log.exception("the calls of worker %s could not be moved", offer.worker)

    def offered(self, name: str) -> RoutedFunction | None:
        """The function that workers' own programs declare under ``name``."""
        with self._lock:
            return next((offer.functions[name] for offer in self._offers.values() if name in offer.functions), None)

    def all_offered(self) -> dict[str, RoutedFunction]:
        """All functions that workers' own programs declare."""
        with self._lock:
            return {name: one for offer in self._offers.values() for name, one in offer.functions.items()}

    def warm(self, function: str) -> list[WarmFunction]:
        """A function's warm processes, by worker."""
        with self._lock:
            return [one for offer in self._offers.values() for one in offer.warm if one.function == function]

    def _is_alive(self, offer: Offer) -> bool:
        return self._address_of(offer) is not None

    def _address_of(self, offer: Offer) -> str | None:
        """The address of a worker; None if it is not alive."""
        if offer.address:
            return offer.address if self._clock_s() < self._leases.get(offer.worker, 0.0) else None
        return self._membership.address_of(offer.worker, offer.instance)

    def able(self, function: RoutedFunction) -> list[str]:
        """See ``Workers``."""
        with self._lock:
            able = [offer for offer in self._offers.values() if not _obstacle(offer, function)]
        return [offer.worker for offer in able if self._is_alive(offer)]

    def obstacles(self, function: RoutedFunction) -> dict[str, str]:
        """See ``Workers``."""
        with self._lock:
            offers = list(self._offers.values())
        return {
            offer.worker: obstacle
            for offer in offers
            if self._is_alive(offer) and (obstacle := _obstacle(offer, function))
        }

    def place(self, worker: str, call: Call) -> AbstractContextManager[None]:
        """See ``Workers``."""
        with self._lock:
            places = self._places.setdefault(worker, worker_places(self._weight_of))
        return places.one(len(call.chain), call.user_id)

    def invoke(
        self,
        worker: str,
        function: RoutedFunction,
        call: Call,
        timeout_s: float | None,
        running: RunningCall,
        items: Items | None = None,
    ) -> CallReport:
        """See ``Workers``."""
        with self._lock:
            offer = self._offers.get(worker)
        address = None if offer is None else self._address_of(offer)
        if address is None:
            raise WorkerGone(worker, may_have_run=False)
        with self._lock:
            self._under_way[call.token] = call, worker
            self._running[worker] += 1
        try:
            with self._needing(worker, function), self.redactors.during(call) as redactor:
                report = self._transport.invoke(worker, address, function, call, timeout_s, running, items)
                redactor.report(report)
                return report
        except WorkerGone:
            # No further calls until its next offer, which a live worker sends within moments.
            with self._lock:
                if self._offers.get(worker) is offer:
                    del self._offers[worker]
            raise
        finally:
            with self._lock:
                del self._under_way[call.token]
                self._running[worker] -= 1
                if not self._running[worker]:
                    del self._running[worker]

    def prepare(self, function: RoutedFunction) -> tuple[str, ...]:
        """Have one able worker of each platform import a function before it is deployed; returns their ids.

        Raises:
            FunctionsUnavailable: no worker could import it now.
            StorageError: the function cannot be imported; the error says why.
        """
        self._await_hosts()
        able = self.able(function)
        with self._lock:
            able.sort(key=lambda worker: self._running[worker])
            offers = [self._offers[worker] for worker in able if worker in self._offers]
        imported: dict[Platform | None, str] = {}
        failed: dict[str, str] = {}
        for offer in offers:
            if offer.platform in imported:
                continue
            if (failure := self._prepared(offer, function)) is None:
                imported[offer.platform] = offer.worker
            else:
                failed[offer.worker] = failure
        if imported:
            return tuple(imported.values())
        failed |= self.obstacles(function)
        needed = f", which needs {text_of(function.needs)}" if function.needs else ""
        told = "; ".join(f"{worker}: {why}" for worker, why in list(failed.items())[:_NAMED_MAX])
        raise FunctionsUnavailable(f"no worker can import {function.name}{needed}" + (f" ({told})" if told else ""))

    def _prepared(self, offer: Offer, function: RoutedFunction) -> str | None:
        """None if a worker has imported it; otherwise why it could not now."""
        address = self._address_of(offer)
        if address is None:
            return "is gone"
        try:
            with self._needing(offer.worker, function):
                self._transport.prepare(offer.worker, address, function, _PREPARE_TIMEOUT_S)
        except (WorkerGone, ServerBusy) as error:
            return str(error)
        return None

    def _await_hosts(self) -> None:
        """Wait for offers: just after the pool's start, workers need a moment."""
        give_up = self._clock_s() + _OFFERS_TAKE_S
        while not self.hosts() and self._clock_s() < give_up:
            time.sleep(_LOOK_AGAIN_S)

    def call_of(self, token: str, worker: str | None = None) -> Call | None:
        """The running call with this token; None if it is over, or is not at this worker."""
        with self._lock:
            call, at = self._under_way.get(token, (None, ""))
        return call if worker is None or worker == at else None

    @contextmanager
    def _needing(self, worker: str, function: RoutedFunction) -> Iterator[None]:
        """Within this context, a worker may fetch a function's bundle."""
        key = (worker, function.file_id, function.version)
        with self._lock:
            self._bundles[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._bundles[key] -= 1
                if not self._bundles[key]:
                    del self._bundles[key]

    def needs_bundle(self, worker: str, file_id: str, version: str) -> bool:
        """Whether a worker has been told to run or try this version of a function, and may need its bundle."""
        with self._lock:
            return (worker, file_id, version) in self._bundles


def _obstacle(offer: Offer, function: RoutedFunction) -> str:
    """Why a worker cannot run a function; empty if it can."""
    if not function.file_id:
        # Compared by name: two processes may pack the same function into bundles that differ by a byte.
        return "" if function.name in offer.functions else "has no such function"
    if not offer.hosts_deployed:
        return f"runs no functions: {offer.unavailable}" if offer.unavailable else "runs no functions"
    if lack := lacking(offer.labels, function.needs):
        return lack
    if function.platforms and (offer.platform is None or best_of(function.platforms, offer.platform) is None):
        here = "of an unknown platform" if offer.platform is None else offer.platform.tag
        return f"is {here}, and the packages are for {', '.join(function.platforms)}"
    return ""

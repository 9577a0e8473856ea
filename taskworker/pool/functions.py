"""The pool's functions: deployments, workers' offers, routing of calls, and their logs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from storage import FileStorage
from storage.clocks import wall_ms
from taskworker.functions.routing.call_log import CallLog
from taskworker.functions.routing.policy import FunctionPolicy
from taskworker.functions.routing.port import RoutedFunction
from taskworker.functions.routing.router import CallRouter
from taskworker.functions.routing.statistics import StatisticsByFunction
from taskworker.pool.deployed import DeployedFunctions
from taskworker.pool.hosting import Hosting, Transport
from taskworker.pool.membership import Membership

log = logging.getLogger(__name__)

_LOOK_S = 0.25


class PoolFunctions:
    """The functions of a pool, with a thread that watches their workers from :meth:`start` until :meth:`close`.

    Args:
        store: the pool's store.
        membership: the pool's members.
        transport: sends calls to workers.
        policy: the operator's settings.
        records: directory for calls' output and statistics; None: a temporary one.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.

    Attributes:
        weight_of: returns a user's weight; a user with twice the weight gets twice as much when users compete.
    """

    def __init__(
        self,
        store: FileStorage,
        membership: Membership,
        transport: Transport,
        policy: FunctionPolicy | None = None,
        records: Path | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        policy = policy or FunctionPolicy()
        self.weight_of = policy.shares.weight_of
        self.hosting = Hosting(membership, transport, policy.shares.weight_of, clock_s)
        self.deployed = DeployedFunctions(store, self.hosting, policy.limits_max, now_ms)
        self.statistics = StatisticsByFunction(clock_s)
        self.log = CallLog(records, policy.records, self.statistics, clock_s, now_ms)
        self.router = CallRouter(
            self._find, self.hosting, self.log.finished, self.statistics, policy.shares, clock_s=clock_s
        )
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="hosting", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._watcher.start()

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self.log.close()

    def _find(self, name: str) -> RoutedFunction | None:
        return self.hosting.offered(name) or self.deployed.find(name)

    def _watch(self) -> None:
        while not self._closing.wait(_LOOK_S):
            try:
                self.hosting.look()
            except Exception:
                log.exception("looking for workers that are gone failed; trying again")

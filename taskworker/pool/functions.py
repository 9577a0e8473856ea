"""The pool's part in calls: what is deployed and offered, who runs it, what it left behind."""

from __future__ import annotations

import threading
from pathlib import Path

from storage import FileStorage
from taskworker.functions.routing.call_log import CallLog
from taskworker.functions.routing.policy import FunctionPolicy
from taskworker.functions.routing.port import RoutedFunction
from taskworker.functions.routing.router import CallRouter
from taskworker.functions.routing.statistics import StatisticsByFunction
from taskworker.pool.deployed import DeployedFunctions
from taskworker.pool.hosting import Hosting, Transport
from taskworker.pool.membership import Membership

_LOOK_S = 0.25


class PoolFunctions:
    """Functions of a pool, with a thread that watches their workers from :meth:`start` until :meth:`close`.

    Args:
        store: the pool's.
        membership: the pool's.
        transport: reaches workers.
        policy: what the operator sets.
        records: the directory that keeps what calls print, and how they do; None: one that goes with this object.

    Attributes:
        weight_of: of a user: who has twice the weight gets twice as much, where users compete.
    """

    def __init__(
        self,
        store: FileStorage,
        membership: Membership,
        transport: Transport,
        policy: FunctionPolicy | None = None,
        records: Path | None = None,
    ) -> None:
        policy = policy or FunctionPolicy()
        self.weight_of = policy.shares.weight_of
        self.hosting = Hosting(membership, transport, policy.shares.weight_of)
        self.deployed = DeployedFunctions(store, self.hosting, policy.limits_max)
        statistics = StatisticsByFunction()
        self.log = CallLog(records, policy.records, statistics)
        self.router = CallRouter(self._find, self.hosting, self.log.finished, statistics, policy.shares)
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="hosting", daemon=True)

    def start(self) -> None:
        """Begin."""
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
            self.hosting.look()

"""The members of a pool, as its DNS zone lists them."""

from __future__ import annotations

from collections.abc import Callable

from taskworker.functions.routing.port import RoutedFunction
from taskworker.outbound.dns.directory import Host, Listing, NamedFunction
from taskworker.pool.functions import PoolFunctions
from taskworker.pool.membership import Membership, WorkerState, WorkerView

_REACHABLE = (WorkerState.ALIVE, WorkerState.DRAINING)


class PoolDirectory:
    """A pool as a ``taskworker.outbound.dns.directory.Directory``. Thread-safe.

    Members that are not alive keep their names, without addresses; forgotten ones have none.

    Args:
        node: the pool's id.
        address: gives the pool's current address.
        membership: the pool's workers.
        functions: the functions that the workers run.
    """

    def __init__(self, node: str, address: Callable[[], str], membership: Membership, functions: PoolFunctions) -> None:
        self._node = node
        self._address = address
        self._membership = membership
        self._functions = functions

    def listing(self) -> Listing:
        """See ``Directory``."""
        offered = self._functions.hosting.all_offered()
        deployed = {one.name: one for one in self._functions.deployed.names() if one.name not in offered}
        return Listing(
            nodes=(Host(self._node, self._address(), (f"node={self._node}",)),),
            workers=tuple(_host(view) for view in self._membership.views()),
            functions=tuple(self._function(one) for one in (offered | deployed).values()),
        )

    def _function(self, function: RoutedFunction) -> NamedFunction:
        workers = tuple(sorted(self._functions.hosting.able(function)))
        notes = (f"function={function.name}", f"version={function.version or 'of workers'}")
        return NamedFunction(function.name, workers, notes)


def _host(view: WorkerView) -> Host:
    record = view.record
    notes = (f"worker={record.worker}", f"state={view.state}", f"zone={record.zone}")
    return Host(record.worker, record.address if view.state in _REACHABLE else "", notes)

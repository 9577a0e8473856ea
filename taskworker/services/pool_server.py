"""A node pool and the gRPC server in front of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import grpc

from storage import ErasureProfile
from taskworker import egress_pb2, functions_pb2, outside_pb2, pool_pb2, taskworker_pb2
from taskworker.egress.audit import AuditLog
from taskworker.egress.limits import DEFAULT_LIMITS, EgressLimits
from taskworker.egress.outside import OutsideApis
from taskworker.egress.proxy import EgressProxy
from taskworker.egress.rules import RuleBook
from taskworker.functions.calls import Call
from taskworker.functions.outside import Outside
from taskworker.pool.functions import PoolFunctions
from taskworker.pool.node_pool import NodePool, PoolOptions
from taskworker.services.admission import Gate
from taskworker.services.binding import generic_handler
from taskworker.services.egress import EgressService
from taskworker.services.functions import FunctionService, HostingService
from taskworker.services.invocation import GrpcTransport
from taskworker.services.outside import OutsideService
from taskworker.services.pool import PoolService
from taskworker.services.rpc import RpcService
from taskworker.services.server import FileServer

_POOL = pool_pb2.DESCRIPTOR.services_by_name["PoolService"]
_HOSTING = functions_pb2.DESCRIPTOR.services_by_name["HostingService"]
_EGRESS = egress_pb2.DESCRIPTOR.services_by_name["EgressService"]
_FUNCTIONS = functions_pb2.DESCRIPTOR.services_by_name["FunctionService"]
_OUTSIDE = outside_pb2.DESCRIPTOR.services_by_name["OutsideService"]
_RPC = taskworker_pb2.DESCRIPTOR.services_by_name["RPCService"]

_CALLS = 128  # of functions at once, waiting ones included: a thread each
_OUTSIDE_CALLS = 256  # what those ask of the world outside, a thread each


class PoolServer:
    """Runs the pool in a directory. ``start`` and ``stop`` may be called once each.

    Args:
        directory: of the pool's catalog, made if absent.
        profile: default (k, n) of a new pool: 4-of-6.
        chunk_size: default chunk size of a new pool, bytes.
        options: how to run it.
        egress: bounds on calls of outside APIs.

    Raises:
        StoreLocked: another process runs it.
        FormatError: the directory is something else's.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        options: PoolOptions | None = None,
        egress: EgressLimits = DEFAULT_LIMITS,
    ) -> None:
        self.pool = NodePool(directory, profile=profile, chunk_size=chunk_size, options=options)
        self._transport = GrpcTransport()
        self.functions = PoolFunctions(self.pool.store, self.pool.membership, self._transport)
        audit = AuditLog(Path(directory) / "egress.log")
        try:
            self.egress = EgressProxy(RuleBook(self.pool.documents), audit, limits=egress)
        except BaseException:
            self.pool.close()
            raise
        services = self._services((str(directory),))
        self._server = FileServer(self.pool.store, added=services, added_calls=_CALLS + _OUTSIDE_CALLS)

    def _services(self, hide: tuple[str, ...]) -> dict[str, grpc.GenericRpcHandler]:
        functions = self.functions
        gate = Gate(_CALLS, f"{_CALLS} calls of functions are under way, as many as this pool allows")
        management = FunctionService(functions.deployed, functions.hosting, functions.router, functions.log)
        outside = OutsideService(functions.hosting.call_of, self._outside_of)
        # Calls under way hold places of their own gate while they ask: with one gate, they could fill it and fail.
        outside_gate = Gate(_OUTSIDE_CALLS, f"{_OUTSIDE_CALLS} calls of functions are asking for what is outside")
        return {
            _EGRESS.full_name: generic_handler(_EGRESS, EgressService(self.egress), hide=hide, gate=gate),
            _OUTSIDE.full_name: generic_handler(_OUTSIDE, outside, hide=hide, gate=outside_gate),
            _POOL.full_name: generic_handler(_POOL, PoolService(self.pool), hide=hide),
            _HOSTING.full_name: generic_handler(
                _HOSTING, HostingService(functions.hosting, functions.deployed), hide=hide
            ),
            _FUNCTIONS.full_name: generic_handler(_FUNCTIONS, management, hide=hide, gate=gate),
            _RPC.full_name: generic_handler(_RPC, RpcService(functions.router), hide=hide, gate=gate),
        }

    def _outside_of(self, call: Call) -> Outside:
        """The world outside as a call may use it, for as long as it is under way."""
        return OutsideApis(self.egress, call, lambda: self.functions.hosting.call_of(call.token) is not None)

    def start(self, address: str) -> int:
        """Listen; see :meth:`taskworker.services.server.FileServer.start`. On failure the pool is closed."""
        try:
            port = self._server.start(address)
        except BaseException:
            self.egress.close()
            self.pool.close()
            raise
        self.functions.start()
        return port

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the server has stopped; False if ``timeout_s`` ran out first."""
        return self._server.wait(timeout_s)

    def stop(self, grace_s: float = 5.0) -> None:
        """Give calls under way ``grace_s`` seconds, then close the pool."""
        # Calls that wait for an answer from outside would keep the server from stopping for as long as they may wait.
        ending = threading.Timer(grace_s, self.egress.close)
        ending.start()
        self._server.stop(grace_s)
        ending.cancel()
        ending.join()
        self.egress.close()
        self.functions.close()
        self._transport.close()
        self.pool.close()

"""A node pool and the gRPC server in front of it."""

from __future__ import annotations

import os

import grpc

from storage import ErasureProfile
from taskworker import functions_pb2, outside_pb2, pool_pb2, taskworker_pb2
from taskworker.dns.call import NamesOfCall
from taskworker.dns.names import DnsOptions, Names
from taskworker.functions.calls import Call
from taskworker.functions.outside import NoOutside
from taskworker.pool.functions import PoolFunctions
from taskworker.pool.names import PoolDirectory
from taskworker.pool.node_pool import NodePool, PoolOptions
from taskworker.services.admission import Gate
from taskworker.services.binding import generic_handler
from taskworker.services.dns import DnsService
from taskworker.services.functions import FunctionService, HostingService
from taskworker.services.invocation import GrpcTransport
from taskworker.services.outside import OutsideService
from taskworker.services.pool import PoolService
from taskworker.services.rpc import RpcService
from taskworker.services.server import FileServer

_POOL = pool_pb2.DESCRIPTOR.services_by_name["PoolService"]
_HOSTING = functions_pb2.DESCRIPTOR.services_by_name["HostingService"]
_FUNCTIONS = functions_pb2.DESCRIPTOR.services_by_name["FunctionService"]
_OUTSIDE = outside_pb2.DESCRIPTOR.services_by_name["OutsideService"]
_RPC = taskworker_pb2.DESCRIPTOR.services_by_name["RPCService"]
_DNS = taskworker_pb2.DESCRIPTOR.services_by_name["DNSService"]

_CALLS = 128  # of functions at once, waiting ones included: a thread each
_LOOKUPS = 32  # of names at once: each holds a thread while name servers are waited for


class _ResolvesOnly(NoOutside):
    """The world outside as far as there is one: names."""

    def __init__(self, names: NamesOfCall) -> None:
        self._names = names

    def resolve(self, name: str, kind: str) -> list[str]:
        """See ``Outside``."""
        return self._names.resolve(name, kind)


class PoolServer:
    """Runs the pool in a directory. ``start`` and ``stop`` may be called once each.

    Args:
        directory: of the pool's catalog, made if absent.
        profile: default (k, n) of a new pool: 4-of-6.
        chunk_size: default chunk size of a new pool, bytes.
        options: how to run it.
        dns: how to resolve names, and where to serve them.

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
        dns: DnsOptions | None = None,
    ) -> None:
        self.pool = NodePool(directory, profile=profile, chunk_size=chunk_size, options=options)
        self._transport = GrpcTransport()
        self.functions = PoolFunctions(self.pool.store, self.pool.membership, self._transport)
        self._address = ""
        directory_of_names = PoolDirectory(
            self.pool.pool_id, lambda: self._address, self.pool.membership, self.functions
        )
        self.names = Names(directory_of_names, dns)
        self._server = FileServer(self.pool.store, added=self._services((str(directory),)), added_calls=_CALLS)

    def _services(self, hide: tuple[str, ...]) -> dict[str, grpc.GenericRpcHandler]:
        functions = self.functions
        gate = Gate(_CALLS, f"{_CALLS} calls of functions are under way, as many as this pool allows")
        lookups = Gate(_LOOKUPS, f"{_LOOKUPS} names are being looked up, as many as this pool does at once")
        management = FunctionService(functions.deployed, functions.hosting, functions.router, functions.log)
        outside = OutsideService(functions.hosting.call_of, self._outside_of)
        return {
            _OUTSIDE.full_name: generic_handler(_OUTSIDE, outside, hide=hide, gate=gate),
            _POOL.full_name: generic_handler(_POOL, PoolService(self.pool), hide=hide),
            _HOSTING.full_name: generic_handler(
                _HOSTING, HostingService(functions.hosting, functions.deployed), hide=hide
            ),
            _FUNCTIONS.full_name: generic_handler(_FUNCTIONS, management, hide=hide, gate=gate),
            _DNS.full_name: generic_handler(_DNS, DnsService(self.names), hide=hide, gate=lookups),
            _RPC.full_name: generic_handler(_RPC, RpcService(functions.router), hide=hide, gate=gate),
        }

    def _outside_of(self, call: Call) -> NoOutside:
        # Until functions are allowed hosts, they resolve the pool's own names alone.
        return _ResolvesOnly(NamesOfCall(self.names, call.function, lambda _function, _name: False))

    def start(self, address: str) -> int:
        """Listen; see :meth:`taskworker.services.server.FileServer.start`. On failure the pool is closed."""
        try:
            self.names.start()
            port = self._server.start(address)
        except BaseException:
            self.names.stop()
            self.pool.close()
            raise
        self._address = address if port == 0 else f"{address.rpartition(':')[0]}:{port}"
        self.functions.start()
        return port

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the server has stopped; False if ``timeout_s`` ran out first."""
        return self._server.wait(timeout_s)

    def stop(self, grace_s: float = 5.0) -> None:
        """Give calls under way ``grace_s`` seconds, then close the pool."""
        self._server.stop(grace_s)
        self.names.stop()
        self.functions.close()
        self._transport.close()
        self.pool.close()

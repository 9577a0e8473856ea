"""A node pool and the gRPC server in front of it."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

import grpc

from storage import ErasureProfile
from taskworker import functions_pb2, outside_pb2, pool_pb2, secrets_pb2, taskworker_pb2
from taskworker.errors import SecretDamaged, SecretsUnavailable
from taskworker.functions.calls import Call
from taskworker.functions.outside import NoOutside
from taskworker.pool.functions import PoolFunctions
from taskworker.pool.node_pool import NodePool, PoolOptions
from taskworker.secrets.calls import CallSecrets
from taskworker.secrets.master_key import KeyFile, MasterKeySource
from taskworker.secrets.store import Secrets
from taskworker.services.admission import Gate
from taskworker.services.binding import generic_handler
from taskworker.services.functions import FunctionService, HostingService
from taskworker.services.invocation import GrpcTransport
from taskworker.services.outside import OutsideService
from taskworker.services.pool import PoolService
from taskworker.services.rpc import RpcService
from taskworker.services.secrets import SecretService
from taskworker.services.server import FileServer

log = logging.getLogger(__name__)

_POOL = pool_pb2.DESCRIPTOR.services_by_name["PoolService"]
_HOSTING = functions_pb2.DESCRIPTOR.services_by_name["HostingService"]
_FUNCTIONS = functions_pb2.DESCRIPTOR.services_by_name["FunctionService"]
_OUTSIDE = outside_pb2.DESCRIPTOR.services_by_name["OutsideService"]
_SECRETS = secrets_pb2.DESCRIPTOR.services_by_name["SecretService"]
_RPC = taskworker_pb2.DESCRIPTOR.services_by_name["RPCService"]

_CALLS = 128  # of functions at once, waiting ones included: a thread each
_MASTER_KEY = "master.key"


class PoolServer:
    """Runs the pool in a directory. ``start`` and ``stop`` may be called once each.

    Args:
        directory: of the pool's catalog, made if absent.
        profile: default (k, n) of a new pool: 4-of-6.
        chunk_size: default chunk size of a new pool, bytes.
        options: how to run it.
        master_key: where the key of the pool's secrets is; default: the file ``master.key`` in ``directory``. Where it
            cannot be used, the pool has no secrets, says so in its log, and does all else.

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
        master_key: MasterKeySource | None = None,
    ) -> None:
        self.pool = NodePool(directory, profile=profile, chunk_size=chunk_size, options=options)
        self._transport = GrpcTransport()
        self.functions = PoolFunctions(self.pool.store, self.pool.membership, self._transport)
        self.secrets = Secrets(self.pool.documents, master_key or KeyFile(Path(directory) / _MASTER_KEY))
        self._server = FileServer(
            self.pool.store,
            added=self._services((str(directory),)),
            added_calls=_CALLS,
            ready=self.pool.gathering.wait,
        )

    def _services(self, hide: tuple[str, ...]) -> dict[str, grpc.GenericRpcHandler]:
        functions = self.functions
        gate = Gate(_CALLS, f"{_CALLS} calls of functions are under way, as many as this pool allows")
        management = FunctionService(functions.deployed, functions.hosting, functions.router, functions.log)
        outside = OutsideService(functions.hosting.call_of, self._outside_of)
        return {
            _OUTSIDE.full_name: generic_handler(_OUTSIDE, outside, hide=hide, gate=gate),
            _POOL.full_name: generic_handler(_POOL, PoolService(self.pool), hide=hide),
            _HOSTING.full_name: generic_handler(
                _HOSTING, HostingService(functions.hosting, functions.deployed), hide=hide
            ),
            _FUNCTIONS.full_name: generic_handler(_FUNCTIONS, management, hide=hide, gate=gate),
            _SECRETS.full_name: generic_handler(_SECRETS, SecretService(self.secrets)),
            _RPC.full_name: generic_handler(_RPC, RpcService(functions.router), hide=hide, gate=gate),
        }

    def _outside_of(self, call: Call) -> _Outside:
        given = functools.partial(self.functions.hosting.redactors.given, call)
        return _Outside(CallSecrets(self.secrets, call, given))

    def start(self, address: str) -> int:
        """Listen; see :meth:`taskworker.services.server.FileServer.start`. On failure the pool is closed."""
        try:
            port = self._server.start(address)
        except BaseException:
            self.pool.close()
            raise
        self.functions.start()
        self._check_secrets()
        return port

    def _check_secrets(self) -> None:
        try:
            self.secrets.check()
        except (SecretsUnavailable, SecretDamaged) as error:
            log.warning("%s", error)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the server has stopped; False if ``timeout_s`` ran out first."""
        return self._server.wait(timeout_s)

    def stop(self, grace_s: float = 5.0) -> None:
        """Give calls under way ``grace_s`` seconds, then close the pool."""
        self.pool.gathering.end()
        self._server.stop(grace_s)
        self.functions.close()
        self._transport.close()
        self.secrets.close()
        self.pool.close()


class _Outside(NoOutside):
    """The world outside as a call of this pool may use it (an ``Outside``)."""

    def __init__(self, secrets: CallSecrets) -> None:
        self._secrets = secrets

    def secret(self, name: str) -> str:
        """See ``Outside``."""
        return self._secrets.secret(name)

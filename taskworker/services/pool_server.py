"""A node pool and the gRPC server in front of it."""

from __future__ import annotations

import os

from storage import ErasureProfile
from taskworker import pool_pb2
from taskworker.pool.node_pool import NodePool, PoolOptions
from taskworker.services.binding import generic_handler
from taskworker.services.pool import PoolService
from taskworker.services.server import FileServer

_SERVICE = pool_pb2.DESCRIPTOR.services_by_name["PoolService"]


class PoolServer:
    """Runs the pool in a directory. ``start`` and ``stop`` may be called once each.

    Args:
        directory: of the pool's catalog, made if absent.
        profile: default (k, n) of a new pool: 4-of-6.
        chunk_size: default chunk size of a new pool, bytes.
        options: how to run it.

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
    ) -> None:
        self.pool = NodePool(directory, profile=profile, chunk_size=chunk_size, options=options)
        handler = generic_handler(_SERVICE, PoolService(self.pool), hide=(str(directory),))
        self._server = FileServer(self.pool.store, added={_SERVICE.full_name: handler}, ready=self.pool.gathering.wait)

    def start(self, address: str) -> int:
        """Listen; see :meth:`taskworker.services.server.FileServer.start`. On failure the pool is closed."""
        try:
            return self._server.start(address)
        except BaseException:
            self.pool.close()
            raise

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the server has stopped; False if ``timeout_s`` ran out first."""
        return self._server.wait(timeout_s)

    def stop(self, grace_s: float = 5.0) -> None:
        """Give calls under way ``grace_s`` seconds, then close the pool."""
        self.pool.gathering.end()
        self._server.stop(grace_s)
        self.pool.close()

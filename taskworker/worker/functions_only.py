"""A worker that runs a pool's functions and holds no shards: nothing needs repair when it goes away."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from storage.system.forks import HomeProcess
from storage.system.locking import StoreLock
from storage.system.private_paths import make_root_directory
from taskworker.rpc.admission import DEFAULT_CALLS
from taskworker.rpc.serving import Server
from taskworker.worker.announcing import announced
from taskworker.worker.calls_server import calls_server
from taskworker.worker.functions import FUNCTION_CALLS, HostedFunctions
from taskworker.worker.member import WorkerMember


class FunctionsOnlyWorker:
    """Runs functions for a pool, from :meth:`start` until :meth:`stop`. Thread-safe.

    Args:
        worker_id: its id in the pool, which no worker with a volume may have.
        directory: where bundles are unpacked; created if absent.
        functions: the functions it runs.
        member: its certificate, if the pool's workers join with tokens.
    """

    def __init__(
        self,
        worker_id: str,
        directory: str | os.PathLike[str],
        functions: HostedFunctions,
        member: WorkerMember | None = None,
    ) -> None:
        self._home = HomeProcess(f"worker {worker_id}")
        self._worker_id = worker_id
        self._directory = Path(directory)
        self._functions = functions
        self._member = member
        self._lock: StoreLock | None = None
        self._server: Server | None = None
        self.address = ""

    def start(self, address: str) -> int:
        """Serve on ``address``, and offer functions to the pool; waits until the pool answers.

        Returns:
            The port bound; 0 for a socket file.

        Raises:
            SandboxUnavailable: this machine cannot isolate functions.
            WorkerRefused: the pool refuses this worker; the text says why.
            StorageUnavailable: the address is taken.
            StoreLocked: another process uses this directory.
        """
        self._home.check()
        make_root_directory(self._directory)
        self._lock = StoreLock(self._directory)
        try:
            services = self._functions.services(self._directory)
            self._server = calls_server(services, DEFAULT_CALLS + FUNCTION_CALLS, self._member)
            credentials = None if self._member is None else self._member.credentials.for_grpc_server()
            port = self._server.start(address, credentials)
            self.address = address if port == 0 else f"{address.rpartition(':')[0]}:{port}"
            reached = announced(self.address, self._member.members_address) if self._member else self.address
            self._functions.start(self._worker_id, secrets.token_hex(8), reached)
            self._functions.await_taken()
        except BaseException:
            self.stop(0.0)
            raise
        return port

    def wait(self) -> None:
        """Return when the worker has been stopped."""
        if self._server is not None:
            self._server.wait()

    def stop(self, grace_s: float = 5.0) -> None:
        """Withdraw the offer and end running calls within ``grace_s`` seconds. Does nothing in a forked child."""
        if not self._home.is_here:
            return
        self._functions.withdraw()
        if self._server is not None:
            self._server.stop(grace_s)
        self._functions.close()
        if self._lock is not None:
            self._lock.release()

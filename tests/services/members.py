"""A pool whose workers join with tokens, two members of it, and a call that runs at one of them."""

from __future__ import annotations

import threading
from pathlib import Path

from taskworker.apps.pool_server import PoolServer
from taskworker.calls.call import Call, CallReport, RunningCall
from taskworker.client.pool import PoolClient
from taskworker.functions.routing.port import RoutedFunction
from taskworker.pool.hosting import Offer
from taskworker.pool.options import PoolOptions
from taskworker.worker.member import WorkerMember, enroll


class Stand:
    """A pool with two members, w1 and w2, and a call of ann's that runs at w1."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        options = PoolOptions(allow_fragile=True)
        self.server = PoolServer(directory / "pool", options=options, joins_by_token=True)
        self.address = f"127.0.0.1:{self.server.start('127.0.0.1:0', '127.0.0.1:0')}"
        with PoolClient(self.address) as operator:
            self.members = {name: self._enroll(operator, name) for name in ("w1", "w2")}
            operator.new_join_token("w3")
        self.call = Call("f", user_id="ann", call_id="c1", token="ab" * 16)

    def _enroll(self, operator: PoolClient, name: str) -> WorkerMember:
        token, address = operator.new_join_token(name)
        (self.directory / name).mkdir()
        return enroll(self.directory / name, address, token, name)

    def running(self, worker: str) -> CallAt:
        """The call runs at a worker within this context."""
        return CallAt(self, worker)

    def close(self) -> None:
        self.server.stop(0.0)


class CallAt:
    """A call that runs at a worker, until the context is left."""

    def __init__(self, stand: Stand, worker: str) -> None:
        self._hosting = stand.server.functions.hosting
        self._call, self._worker = stand.call, worker
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        function = RoutedFunction("f", version="v" * 32, file_id="b" * 32)
        address = f"127.0.0.1:{1}"
        self._hosting._transport, transport = self, self._hosting._transport  # type: ignore[assignment]
        self._hosting.offer(Offer(self._worker, "i", hosts_deployed=True, functions={}, address=address))
        try:
            self._hosting.invoke(self._worker, function, self._call, 60.0, RunningCall())
        finally:
            self._hosting._transport = transport

    def invoke(self, *_arguments: object) -> CallReport:
        """The part of a transport that is needed here."""
        self._begun.set()
        self._ended.wait(60)
        return CallReport(result="1")

    def abandon(self, _worker: str) -> None:
        """See ``Transport``."""

    def __enter__(self) -> None:
        self._thread.start()
        self._begun.wait(60)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

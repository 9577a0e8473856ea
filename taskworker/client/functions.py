"""The operator's client for functions: deploying them, and watching their calls."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from storage.arguments import whole_number
from taskworker.auth.contexts import Access
from taskworker.calls.owners import CANDIDATE_OWNER
from taskworker.client.deadline import Deadline
from taskworker.client.operators import OperatorClient
from taskworker.errors import ServerBusy
from taskworker.protos import functions_pb2
from taskworker.protos.functions_pb2_grpc import FunctionServiceStub
from taskworker.rpc.limits import TAIL_MAX

DEPLOY_TIMEOUT_S = 300.0
_TURN_S = 60.0
"""Seconds that a deployment waits while the pool is busy with others."""
_PAUSES_MAX = 5
_SENT_WHOLE_BYTES_MAX = 2 << 20


@dataclass(frozen=True, slots=True)
class Deployed:
    """The result of a deployment.

    Attributes:
        function: its name.
        version_id: id of the newest version; empty after a dry run.
        changed: False if this version was already the newest.
        imported_by: workers that imported it before it went live.
        not_imported: why no worker has imported it; only for a function's first version, or one deployed before.
        able: workers that can run it now.
        unable: workers that cannot, and why.
    """

    function: str
    version_id: str
    changed: bool
    imported_by: tuple[str, ...] = ()
    not_imported: str = ""
    able: tuple[str, ...] = ()
    unable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WarmProcesses:
    """A function's warm processes on a worker; memory is the proportional set size in bytes."""

    worker_id: str
    processes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class FunctionStatus:
    """A function, with statistics of its calls; ``rate`` in calls per second over the last minute.

    ``version_id`` is empty for a function that workers' own programs declare.
    """

    function: str
    version_id: str
    deployed_ms: int
    idempotent: bool
    cache_ttl_s: float
    concurrency: int
    queue: int
    workers: list[str]
    calls: int
    errors: int
    cached: int
    moved: int
    rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    running: int
    waiting: int
    warm: list[WarmProcesses]


@dataclass(frozen=True, slots=True)
class FunctionVersion:
    """A version of a deployed function; ``size`` is that of its bundle in bytes."""

    version_id: str
    deployed_ms: int
    size: int
    deployed_by: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a call printed or logged; in the stream ``event``, how the call ended."""

    time_ms: int
    call_id: str
    worker_id: str
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class FunctionHost:
    """A worker that runs functions.

    ``functions`` are those that its own program declares; ``running`` counts its running calls; ``platform`` is a
    tag such as ``3.12-x86_64-glibc2.36``, empty if unknown.
    """

    worker_id: str
    address: str
    has_volume: bool
    hosts_deployed: bool
    labels: dict[str, str]
    functions: list[str]
    running: int
    platform: str


class FunctionClient(OperatorClient):
    """The functions of a pool. Thread-safe; a context manager.

    Raises errors of the engine's family: ``FunctionNotFound``, ``InvalidArgument``, ``StorageUnavailable``.

    Args:
        address: address of the pool.
        access: what to show, and to whom; None: as the context for the address says.
    """

    def __init__(self, address: str, *, access: Access | None = None) -> None:
        super().__init__(address, access=access)
        self._stub = FunctionServiceStub(self.channel)

    def deploy(
        self, bundle: bytes, *, user_id: str, dry_run: bool = False, timeout_s: float | None = DEPLOY_TIMEOUT_S
    ) -> Deployed:
        """Make a bundle the newest version of its function, once a worker has imported it.

        Args:
            bundle: the function's bundle.
            user_id: the user who deploys it.
            dry_run: import it on a worker, but do not deploy it.
            timeout_s: seconds to wait.

        Raises:
            FunctionBroken: it cannot be imported, or has no such entry.
            FunctionsUnavailable: no worker could import it, and there is an earlier version.
            FormatError: it is not a bundle.
            InvalidArgument: its document asks for something out of bounds.
            ServerBusy: the pool was busy with other deployments for a minute.
        """
        deadline = Deadline(timeout_s)
        request = functions_pb2.DeployRequest(user_id=user_id, dry_run=dry_run)
        if len(bundle) <= _SENT_WHOLE_BYTES_MAX:
            request.bundle = bundle
        else:
            request.file_id, request.version_id = self._pushed(bundle, timeout_s)
        turn, attempt = Deadline(_TURN_S), 0
        while True:
            try:
                return _deployed(self.unary(self._stub.Deploy, request, deadline.remaining_s()))
            except ServerBusy:
                if turn.is_over:
                    raise
            attempt = min(attempt + 1, _PAUSES_MAX)
            deadline.back_off(attempt)

    def _pushed(self, bundle: bytes, timeout_s: float | None) -> tuple[str, str]:
        """Push a bundle that is too large for a message as a file; chunks that the pool has are not sent."""
        from taskworker.client.file_calls import FileCalls

        with FileCalls(self.address, timeout_s=timeout_s) as files:
            version = files.push(bundle, filename=secrets.token_hex(16), user_id=CANDIDATE_OWNER)
        return version.file_id, version.version_id

    def undeploy(self, function: str) -> None:
        """Remove a deployed function and its versions."""
        request = functions_pb2.UndeployRequest(function_name=function)
        self._call(self._stub.Undeploy, request)

    def roll_back(self, function: str, version_id: str = "", *, user_id: str) -> Deployed:
        """Make an earlier version the newest again, by default the previous one."""
        request = functions_pb2.RollbackRequest(function_name=function, version_id=version_id, user_id=user_id)
        return _deployed(self._call(self._stub.Rollback, request))

    def functions(self, *, timeout_s: float | None = OperatorClient.timeout_s) -> list[FunctionStatus]:
        """All functions, by name."""
        request = functions_pb2.ListFunctionsRequest()
        answer = self.unary(self._stub.ListFunctions, request, Deadline(timeout_s).remaining_s())
        return [_function_status(one) for one in answer.functions]

    def hosts(self) -> list[FunctionHost]:
        """The workers that run functions, by id."""
        request = functions_pb2.ListHostsRequest()
        answer = self._call(self._stub.ListHosts, request)
        return [
            FunctionHost(
                worker_id=one.worker_id,
                address=one.address,
                has_volume=one.has_volume,
                hosts_deployed=one.hosts_deployed,
                labels=dict(one.labels),
                functions=list(one.functions),
                running=one.running,
                platform=one.platform,
            )
            for one in answer.hosts
        ]

    def history(self, function: str) -> list[FunctionVersion]:
        """The versions of a deployed function, newest first."""
        request = functions_pb2.FunctionHistoryRequest(function_name=function)
        answer = self._call(self._stub.FunctionHistory, request)
        return [FunctionVersion(one.version_id, one.deployed_ms, one.size, one.deployed_by) for one in answer.versions]

    def logs(
        self, function: str = "", *, follow: bool = False, since_ms: int = 0, tail: int | None = None, call_id: str = ""
    ) -> Iterator[LogLine]:
        """Yield the kept lines; with ``follow``, keep yielding new ones without end.

        Args:
            function: name of the function; empty: all functions, if ``call_id`` is given.
            follow: whether to keep yielding new lines.
            since_ms: only lines from this time on, ms since 1970.
            tail: only this many of the last lines.
            call_id: only lines of calls whose id starts with this.

        Raises:
            InvalidArgument: neither a function nor a call is given, or a number is out of range.
        """
        whole_number("since_ms", 0)(since_ms)
        if tail is not None:
            whole_number("tail", 0, TAIL_MAX)(tail)
        request = functions_pb2.LogsRequest(
            function_name=function, follow=follow, since_ms=since_ms, tail=tail, call_id=call_id
        )
        for line in self._stream(self._stub.Logs, request):
            yield LogLine(line.time_ms, line.call_id, line.worker_id, line.stream, line.text)


def _deployed(answer: functions_pb2.DeployResponse) -> Deployed:
    return Deployed(
        answer.function_name,
        answer.version_id,
        answer.changed,
        tuple(answer.imported_by),
        answer.not_imported,
        tuple(answer.able),
        dict(answer.unable),
    )


def _function_status(one: functions_pb2.Function) -> FunctionStatus:
    statistics = one.statistics
    return FunctionStatus(
        function=one.function_name,
        version_id=one.version_id,
        deployed_ms=one.deployed_ms,
        idempotent=one.idempotent,
        cache_ttl_s=one.cache_ttl,
        concurrency=one.concurrency,
        queue=one.queue,
        workers=list(one.workers),
        calls=statistics.calls,
        errors=statistics.errors,
        cached=statistics.cached,
        moved=statistics.moved,
        rate=statistics.rate,
        p50_ms=statistics.p50_ms,
        p95_ms=statistics.p95_ms,
        p99_ms=statistics.p99_ms,
        running=one.running,
        waiting=one.waiting,
        warm=[WarmProcesses(warm.worker_id, warm.processes, warm.memory_bytes) for warm in one.warm],
    )

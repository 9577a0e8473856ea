"""FunctionService and HostingService of ``functions.proto``: deployed functions, and the workers that run them."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator

from storage import Version
from storage.errors import InvalidArgument
from taskworker.auth.rights import Right
from taskworker.calls.labels import check_labels
from taskworker.calls.owners import CANDIDATE_OWNER, DEPLOYED_OWNER
from taskworker.calls.platform import Platform
from taskworker.calls.spec import check_name, check_options
from taskworker.errors import CallAbandoned
from taskworker.functions.routing.call_log import CallLog
from taskworker.functions.routing.port import RoutedFunction
from taskworker.functions.routing.record_formats import LineQuery
from taskworker.functions.routing.router import CallRouter
from taskworker.pool.deployed import DeployedFunctions, Deployment
from taskworker.pool.hosting import LEASE_S, Hosting, Offer, WarmFunction
from taskworker.protos import functions_pb2
from taskworker.rpc.admission import Gate
from taskworker.rpc.authorization import require_right, user_of
from taskworker.rpc.binding import Caller
from taskworker.rpc.dialling import target_of
from taskworker.shares import TIMES_THE_FREE, UserPlaces

_DEPLOYMENTS_MAX = 4
"""Concurrent deployments: each holds a bundle in memory and checks it entry by entry."""
_DEPLOYMENTS_OF_USER = 3
"""Concurrent deployments of one user: importing a module may take, or hang for, a minute."""
_FOLLOWERS_MAX = 32
"""Each follower takes up one of the operators' concurrent calls for as long as it follows."""
_OFFERED_MAX = 1_000
_REASON_CHARS_MAX = 500
_WORKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class FunctionService:
    """Manages the functions of a pool; thread-safe."""

    def __init__(self, deployed: DeployedFunctions, hosting: Hosting, router: CallRouter, log: CallLog) -> None:
        self._deployed = deployed
        self._hosting = hosting
        self._router = router
        self._log = log
        self._deployments = UserPlaces(
            _DEPLOYMENTS_MAX, "this pool", "deployments", lambda _user: _DEPLOYMENTS_OF_USER / TIMES_THE_FREE
        )
        self._followers = Gate(
            _FOLLOWERS_MAX, f"{_FOLLOWERS_MAX} logs of functions are being followed, as many as this pool allows"
        )

    def Deploy(  # noqa: N802 - the names are the contract's
        self, request: functions_pb2.DeployRequest, caller: Caller
    ) -> functions_pb2.DeployResponse:
        """Make a bundle the newest version of its function, if a worker can import it."""
        permit = functools.partial(require_right, caller, Right.DEPLOY)
        with self._deployments.one(request.user_id):
            if request.file_id:
                deployment = self._deployed.deploy_pushed(
                    request.file_id, request.version_id, request.user_id, dry_run=request.dry_run, permit=permit
                )
            else:
                deployment = self._deployed.deploy(
                    request.bundle, request.user_id, dry_run=request.dry_run, permit=permit
                )
        return _deployment(deployment)

    def Undeploy(  # noqa: N802
        self, request: functions_pb2.UndeployRequest, _caller: Caller
    ) -> functions_pb2.UndeployResponse:
        """Remove a function."""
        self._deployed.undeploy(request.function_name)
        self._router.forget(request.function_name)
        return functions_pb2.UndeployResponse()

    def Rollback(  # noqa: N802
        self, request: functions_pb2.RollbackRequest, _caller: Caller
    ) -> functions_pb2.DeployResponse:
        """Make an earlier version the newest again."""
        with self._deployments.one(request.user_id):
            return _deployment(self._deployed.roll_back(request.function_name, request.version_id, request.user_id))

    def FunctionHistory(  # noqa: N802
        self, request: functions_pb2.FunctionHistoryRequest, _caller: Caller
    ) -> functions_pb2.FunctionHistoryResponse:
        """The versions deployed, newest first."""
        return functions_pb2.FunctionHistoryResponse(
            versions=[
                functions_pb2.FunctionVersion(
                    version_id=version.version_id,
                    deployed_ms=version.time_ms,
                    size=version.size,
                    deployed_by=version.note,
                )
                for version in self._deployed.history(request.function_name)
            ]
        )

    def ListFunctions(  # noqa: N802
        self, _request: functions_pb2.ListFunctionsRequest, _caller: Caller
    ) -> functions_pb2.ListFunctionsResponse:
        """All functions, deployed or declared by workers' programs, with statistics of their calls."""
        found: dict[str, functions_pb2.Function] = {}
        for name, function in self._hosting.all_offered().items():
            found[name] = self._function(function, None)
        for deployed, head in self._deployed.all():
            found.setdefault(deployed.name, self._function(deployed, head))
        return functions_pb2.ListFunctionsResponse(functions=[found[name] for name in sorted(found)])

    def ListHosts(  # noqa: N802
        self, _request: functions_pb2.ListHostsRequest, _caller: Caller
    ) -> functions_pb2.ListHostsResponse:
        """The workers that run functions."""
        return functions_pb2.ListHostsResponse(
            hosts=[
                functions_pb2.FunctionHost(
                    worker_id=host.worker,
                    address=host.address,
                    has_volume=host.has_volume,
                    hosts_deployed=host.hosts_deployed,
                    labels=host.labels,
                    functions=host.functions,
                    running=host.running,
                    platform=host.platform,
                )
                for host in self._hosting.hosts()
            ]
        )

    def Logs(  # noqa: N802
        self, request: functions_pb2.LogsRequest, caller: Caller
    ) -> Iterator[functions_pb2.LogLine]:
        """Lines that calls printed and logged."""
        query = LineQuery(request.function_name, request.call_id, request.since_ms)
        if not query.function and not query.call_id:
            raise InvalidArgument("name the function or the call whose log is wanted")
        tail = request.tail if request.HasField("tail") else None
        with self._followers.place(user_of(caller)) if request.follow else contextlib.nullcontext():
            for line in self._log.read(query, tail=tail, follow=request.follow):
                if not caller.is_active():
                    raise CallAbandoned("the caller went away")
                if line is not None:
                    yield functions_pb2.LogLine(
                        time_ms=line.time_ms,
                        call_id=line.call_id,
                        worker_id=line.worker,
                        stream=line.stream,
                        text=line.text,
                    )

    def _function(self, function: RoutedFunction, head: Version | None) -> functions_pb2.Function:
        told = self._router.figures(function.name)
        figures = told.figures
        return functions_pb2.Function(
            function_name=function.name,
            version_id=head.version_id if head is not None else "",
            deployed_ms=head.time_ms if head is not None else 0,
            idempotent=function.idempotent,
            cache_ttl=function.cache_ttl_s,
            concurrency=function.concurrency,
            queue=function.queue,
            workers=sorted(self._hosting.able(function)),
            statistics=functions_pb2.CallStatistics(
                calls=figures.calls,
                errors=figures.errors,
                cached=figures.cached,
                moved=figures.moved,
                rate=figures.rate,
                p50_ms=figures.p50_s * 1000,
                p95_ms=figures.p95_s * 1000,
                p99_ms=figures.p99_s * 1000,
            ),
            running=told.running,
            waiting=told.waiting,
            warm=[
                functions_pb2.WarmFunction(
                    worker_id=one.worker,
                    function_name=one.function,
                    processes=one.processes,
                    memory_bytes=one.memory_bytes,
                )
                for one in self._hosting.warm(function.name)
            ],
        )


ReadBundle = Callable[[str, str, str], Iterator[bytes]]
"""(user, id of a file, id of a version) → its content, in pieces."""


class HostingService:
    """Records which functions each worker can run, and gives workers their bundles; thread-safe.

    Args:
        hosting: the workers.
        deployed: the functions.
        read_bundle: reads a version of a file of a user, piece by piece.
        knows_calls: whether running calls are known by their tokens here.
    """

    def __init__(
        self, hosting: Hosting, deployed: DeployedFunctions, read_bundle: ReadBundle, *, knows_calls: bool = False
    ) -> None:
        self._hosting = hosting
        self._deployed = deployed
        self._read_bundle = read_bundle
        self._knows_calls = knows_calls

    def FetchBundle(  # noqa: N802
        self, request: functions_pb2.FetchBundleRequest, _caller: Caller
    ) -> Iterator[functions_pb2.FetchBundlePart]:
        """The bundle of a version."""
        owner = CANDIDATE_OWNER if request.is_candidate else DEPLOYED_OWNER
        for data in self._read_bundle(owner, request.file_id, request.version_id):
            yield functions_pb2.FetchBundlePart(data=data)

    def Offer(  # noqa: N802
        self, request: functions_pb2.OfferRequest, _caller: Caller
    ) -> functions_pb2.OfferResponse:
        """Record the functions that a worker can run from now on.

        Raises:
            InvalidArgument: a function or label is invalid, or there are too many.
            WorkerRefused: a worker without a volume uses the id of another worker.
            NotJoined: the worker has no lease.
        """
        if len(request.functions) > _OFFERED_MAX or len(request.warm) > _OFFERED_MAX:
            raise InvalidArgument(f"an offer of more than {_OFFERED_MAX:,} functions")
        functions = {one.function_name: _offered(one) for one in request.functions}
        warm = tuple(
            WarmFunction(one.function_name, request.worker_id, one.processes, one.memory_bytes) for one in request.warm
        )
        if request.withdrawn:
            self._hosting.withdraw(request.worker_id, request.instance)
            return functions_pb2.OfferResponse()
        if request.address:
            _check_host(request)
        offer = Offer(
            worker=request.worker_id,
            instance=request.instance,
            hosts_deployed=request.hosts_deployed,
            functions=functions,
            warm=warm,
            labels=check_labels(dict(request.labels)),
            address=request.address,
            platform=Platform.of(request.platform) if request.platform else None,
            unavailable=request.unavailable[:_REASON_CHARS_MAX],
        )
        self._hosting.offer(offer)
        return functions_pb2.OfferResponse(
            functions_deployed=self._deployed.any(),
            lease_ms=int(LEASE_S * 1000),
            knows_calls=self._knows_calls,
            ended_versions=[
                version
                for one in request.warm
                for version in one.version_ids
                if not self._deployed.is_wanted(one.function_name, version)
            ],
        )


def _check_host(request: functions_pb2.OfferRequest) -> None:
    """Check the id and address of a worker without a volume."""
    if not _WORKER_ID.fullmatch(request.worker_id) or not request.instance:
        raise InvalidArgument(
            f"worker id {request.worker_id[:80]!r}: use 1 to 64 letters, digits, '.', '_' or '-', first a letter or "
            "digit"
        )
    target_of(request.address)


def _offered(offer: functions_pb2.FunctionOffer) -> RoutedFunction:
    """Read a function that a worker offers; it must be within the bounds of any function."""
    concurrency = max(1, offer.concurrency)
    check_options(concurrency, offer.queue, offer.cache_ttl)
    return RoutedFunction(
        name=check_name(offer.function_name),
        version=offer.bundle,
        idempotent=offer.idempotent,
        cache_ttl_s=offer.cache_ttl,
        concurrency=concurrency,
        queue=offer.queue,
        keeps=offer.keeps,
    )


def _deployment(deployment: Deployment) -> functions_pb2.DeployResponse:
    return functions_pb2.DeployResponse(
        function_name=deployment.function,
        version_id=deployment.version_id,
        changed=deployment.changed,
        imported_by=deployment.imported_by,
        not_imported=deployment.not_imported,
        able=deployment.able,
        unable=deployment.unable,
    )

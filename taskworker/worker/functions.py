"""A worker's functions: offered to a pool, or served by a standalone worker."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from storage.clocks import wall_ms
from storage.errors import InvalidArgument, StorageError
from storage.system.forks import HomeProcess
from taskworker.calls import call_tokens
from taskworker.calls.bundle import PackedFunction
from taskworker.calls.call import Call, RunningCall
from taskworker.calls.chains import Chain, chain_metadata
from taskworker.calls.concurrency import worker_places
from taskworker.calls.labels import check_labels
from taskworker.calls.nested import patiently
from taskworker.calls.owners import CANDIDATE_OWNER
from taskworker.calls.platform import own_platform
from taskworker.calls.spec import KEEP_MAX, LIMITS_MAX
from taskworker.client import Client
from taskworker.errors import WorkerRefused
from taskworker.functions.hosting.host import FunctionHost
from taskworker.functions.hosting.local import LocalWorkers
from taskworker.functions.hosting.user_files import EmbeddedFiles, PoolFiles
from taskworker.functions.routing.router import CallRouter
from taskworker.protos import functions_pb2, taskworker_pb2
from taskworker.protos.functions_pb2_grpc import HostingServiceStub
from taskworker.protos.outside_pb2_grpc import OutsideServiceStub
from taskworker.protos.taskworker_pb2_grpc import RPCServiceStub
from taskworker.rpc import status
from taskworker.rpc.admission import MEMBER_LIMITS
from taskworker.rpc.authorization import Guard
from taskworker.rpc.binding import generic_handler
from taskworker.rpc.dialling import dial
from taskworker.rpc.token_channel import TokenChannel
from taskworker.sandbox import Keep, Limits, SandboxUnavailable
from taskworker.services.capabilities import RemoteCapabilities
from taskworker.services.invocation import InvocationService
from taskworker.services.pool_only import pool_only
from taskworker.services.rpc import CALL_CODECS, RpcService, StreamService, awaited
from taskworker.worker.member import WorkerMember
from taskworker.worker.renewal import Renewal

if TYPE_CHECKING:  # the engine, which workers of a pool do without
    from storage import FileStorage

log = logging.getLogger(__name__)

FUNCTION_CALLS = worker_places().total
"""How many calls of functions a worker runs at most; the pool sends further calls to other workers."""

_STREAMS = functions_pb2.DESCRIPTOR.services_by_name["StreamService"]
_RPC = taskworker_pb2.DESCRIPTOR.services_by_name["RPCService"]
_INVOCATION = functions_pb2.DESCRIPTOR.services_by_name["InvocationService"]
_OFFER_EVERY_S = 2.0
_OFFERS_PER_LEASE = 4
_OFFER_TIMEOUT_S = 5.0
_FETCH_TIMEOUT_S = 300.0  # for a bundle of some hundred MiB over a slow line
_TRY_AGAIN_S = 15.0


class HostedFunctions:
    """Runs functions for a pool. Thread-safe.

    Args:
        pool_address: address of the pool.
        directory: where bundles are unpacked.
        member: the worker's certificate, if the pool's workers join with tokens.
        required: whether the worker is useless without functions. If so, :meth:`services` raises if sandboxes
            cannot be started. Otherwise the sandbox starts once the pool has functions, and if it cannot, the
            worker goes on without functions, and logs that.
        limits_max: the highest limits that a function may ask for.
        keep_max: how long a process may serve calls of one user at most.
        labels: labels of this worker, for functions that need some.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        pool_address: str,
        directory: Path,
        *,
        required: bool,
        member: WorkerMember | None = None,
        limits_max: Limits = LIMITS_MAX,
        keep_max: Keep = KEEP_MAX,
        labels: Mapping[str, str] | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._clock_s = clock_s
        self._home = HomeProcess("this worker's host of functions")
        self._member = member
        self._channel = dial(pool_address, as_worker=True) if member is None else member.channel()
        self._client = Client(pool_address, channel=self._channel)
        self._knows_calls = member is not None
        self._renewal = Renewal(member, self._channel, clock_s)
        self._hosting = HostingServiceStub(self._channel)
        outside = OutsideServiceStub(self._channel)
        self._pool_address = pool_address
        self._required = required
        self.host = FunctionHost(
            directory,
            lambda call, timeout_s: PoolFiles(partial(self._client_for, call), call.user_id, timeout_s),
            self._call_function,
            lambda call, timeout_s, asking: RemoteCapabilities(outside, pool_address, call.token, timeout_s, asking),
            limits_max,
            keep_max,
            clock_s,
            now_ms,
        )
        self.unavailable: str | None = None
        self._try_at = 0.0
        self._worker, self._instance, self._address = "", "", ""
        self._labels = check_labels(dict(labels or {}))
        self._every_s = _OFFER_EVERY_S
        self._taken = threading.Event()
        self._refused: StorageError | None = None
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._offering = threading.Thread(target=self._keep_offering, name="offers", daemon=True)

    def register(self, functions: Iterable[PackedFunction]) -> None:
        """Add functions that this worker's own program declares."""
        for function in functions:
            self.host.register(function)
        self.offer_soon()

    def services(self, directory: Path) -> dict[str, grpc.GenericRpcHandler]:
        """The services that the pool calls.

        Raises:
            SandboxUnavailable: functions are required, and this machine cannot isolate them.
        """
        if self._required:
            self.host.start()
        service = InvocationService(self.host, self._fetch)
        guard = None if self._member is None else pool_only(self._member.credentials.identity)
        handler = generic_handler(_INVOCATION, service, hide=(str(directory),), guard=guard, limits=MEMBER_LIMITS)
        return {_INVOCATION.full_name: handler}

    def start(self, worker_id: str, instance: str, address: str = "") -> None:
        """Start offering functions to the pool.

        Args:
            worker_id: id of the worker.
            instance: random name of this process of the worker.
            address: where to reach a worker without a volume; empty: the worker is a member of the pool.
        """
        self._worker, self._instance, self._address = worker_id, instance, address
        self._offering.start()

    def await_taken(self) -> None:
        """Wait for the pool to accept the offer.

        Raises:
            WorkerRefused: the pool does not accept it.
        """
        self._taken.wait()
        if self._refused is not None:
            raise self._refused

    @property
    def is_taken(self) -> bool:
        """Whether the pool has accepted the offer."""
        return self._taken.is_set() and self._refused is None

    def withdraw(self) -> None:
        """Tell the pool that a worker without a volume stops. Does nothing if it has not started offering."""
        if self._closing.is_set() or not self._offering.is_alive():
            return
        self._closing.set()
        self._wanted.set()
        self._offering.join()
        request = functions_pb2.OfferRequest(worker_id=self._worker, instance=self._instance, withdrawn=True)
        try:
            self._hosting.Offer(request, timeout=_OFFER_TIMEOUT_S)
        except grpc.RpcError as error:
            log.info("the pool could not be told that this worker stops: %s", status.decode(error, self._pool_address))

    def renew(self, instance: str) -> None:
        """Offer again after the worker has joined under another instance name."""
        self._instance = instance
        self.offer_soon()

    def offer_soon(self) -> None:
        """Offer again soon: the functions that can run have changed, or the pool has forgotten the offer."""
        self._wanted.set()

    def close(self) -> None:
        """End all calls and their processes, and close the connections. Does nothing in a forked child."""
        if not self._home.is_here:
            return
        self._closing.set()
        self._wanted.set()
        if self._offering.is_alive():
            self._offering.join()
        self.host.close()
        self._channel.close()
        self._client.close()

    # -- the pool ------------------------------------------------------------------------------------

    def _keep_offering(self) -> None:
        while not self._closing.is_set():
            try:
                self._offer_now()
            except Exception:  # must not end the thread: the pool would send no more calls
                log.exception("the pool was not told what this worker can run, and is told again")
            self._wanted.wait(self._every_s)
            self._wanted.clear()

    def _offer_now(self) -> None:
        try:
            answer = self._hosting.Offer(self._offer(), timeout=_OFFER_TIMEOUT_S)
        except grpc.RpcError as error:
            self._not_taken(status.decode(error, self._pool_address))
            return
        self._taken.set()
        self._knows_calls = answer.knows_calls
        self.host.end_versions(answer.ended_versions)
        if self._address:  # a worker with a volume renews its certificate itself
            self._renewal.look(told=answer.renew)
        if self._address and answer.lease_ms:
            self._every_s = answer.lease_ms / 1000 / _OFFERS_PER_LEASE
        if answer.functions_deployed and self._clock_s() >= self._try_at:
            self._bring_up()

    def _not_taken(self, error: StorageError) -> None:
        if not self._address:
            log.debug("the pool did not take the offer: %s", error)
        elif self._taken.is_set():
            log.warning("the pool did not take the offer of this worker: %s", error)
        elif isinstance(error, (WorkerRefused, InvalidArgument)):
            self._refused = error
            self._taken.set()
        else:
            log.warning("%s; waiting for it", error)

    def _bring_up(self) -> None:
        """Start the sandbox before the first call."""
        try:
            self.host.start()
        except SandboxUnavailable as error:
            if self.unavailable is None:
                log.warning("this worker runs no functions: %s", error)
            self.unavailable = str(error)
            self._try_at = self._clock_s() + _TRY_AGAIN_S  # it may have failed because of a momentary load
        else:
            if self.unavailable is not None:
                self.unavailable = None
                self.offer_soon()

    def _offer(self) -> functions_pb2.OfferRequest:
        return functions_pb2.OfferRequest(
            worker_id=self._worker,
            instance=self._instance,
            address=self._address,
            labels=self._labels,
            platform=_platform_tag(),
            hosts_deployed=self.unavailable is None,
            unavailable=self.unavailable or "",
            functions=[
                functions_pb2.FunctionOffer(
                    function_name=name,
                    bundle=hosted.image.key,
                    idempotent=hosted.spec.idempotent,
                    cache_ttl=hosted.spec.cache_ttl_s,
                    concurrency=hosted.spec.concurrency,
                    queue=hosted.spec.queue,
                    keeps=hosted.spec.keep is not None,
                )
                for name, hosted in self.host.own.items()
            ],
            warm=[
                functions_pb2.WarmFunction(
                    worker_id=self._worker,
                    function_name=warm.name,
                    processes=warm.processes,
                    memory_bytes=warm.memory_bytes,
                    version_ids=warm.versions,
                )
                for warm in self.host.views()
            ],
        )

    def _fetch(self, owner: str, file_id: str, version_id: str) -> bytes:
        if not self._knows_calls:  # a pool of an earlier release, or one where everybody may do everything
            return self._client.get(file_id, user_id=owner, version_id=version_id)
        request = functions_pb2.FetchBundleRequest(
            file_id=file_id, version_id=version_id, is_candidate=owner == CANDIDATE_OWNER
        )
        with status.errors_decoded(self._pool_address):
            return b"".join(part.data for part in self._hosting.FetchBundle(request, timeout=_FETCH_TIMEOUT_S))

    def _channel_for(self, token: str) -> grpc.Channel:
        """A channel for what a call does: the pool serves it as the call's user."""
        if not self._knows_calls:
            return self._channel
        return TokenChannel(lambda _none: self._channel, lambda: (call_tokens.written(token), None))

    def _client_for(self, call: Call) -> Client:
        return Client(self._pool_address, channel=self._channel_for(call.token))

    def _call_function(self, call: Call, timeout_s: float | None, asking: RunningCall) -> str:
        request = taskworker_pb2.FunctionCallRequest(
            function_name=call.function, args=call.args, kwargs=call.kwargs, user_id=call.user_id
        )
        pool = RPCServiceStub(self._channel_for(call.parent))
        metadata = chain_metadata(Chain(call.call_id or secrets.token_hex(8), call.chain, call.parent))

        def ask(left_s: float | None) -> str:
            with status.errors_decoded(self._pool_address):
                asked = pool.CallFunction.future(request, timeout=left_s, metadata=metadata)
                return awaited(asked, asking).result

        return patiently(ask, timeout_s, asking, self._clock_s)


def _platform_tag() -> str:
    here = own_platform()
    return "" if here is None else here.tag


class LocalFunctions:
    """Runs the functions of a worker without a pool. Thread-safe.

    Args:
        worker_id: the worker's name.
        store: the store with the files that functions work on.
        limits_max: the highest limits that a function may ask for.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        worker_id: str,
        store: FileStorage,
        limits_max: Limits = LIMITS_MAX,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._clock_s = clock_s
        self._home = HomeProcess("this worker's host of functions")
        private = Path(tempfile.mkdtemp(prefix="taskworker-functions-"))
        self._remove_bundles = weakref.finalize(self, _remove_at_home, private, self._home)
        self._bundles = private / "bundles"  # which users of sandboxes may enter, but only from within a sandbox
        self._host = FunctionHost(
            self._bundles,
            lambda call, _timeout_s: EmbeddedFiles(store, call.user_id),
            self._call_function,
            limits_max=limits_max,
            clock_s=clock_s,
            now_ms=now_ms,
        )
        workers = LocalWorkers(worker_id, self._host)
        self._router = CallRouter(workers.find, workers, places=worker_places(), clock_s=clock_s)

    def register(self, functions: list[PackedFunction]) -> None:
        """Add functions that this program declares.

        Raises:
            SandboxUnavailable: this machine cannot isolate them.
        """
        if functions:
            self._host.start()
        for function in functions:
            self._host.register(function)

    def services(self, guard: Guard | None = None) -> dict[str, grpc.GenericRpcHandler]:
        """The gRPC services to serve; ``guard`` refuses calls that a caller may not make."""
        hide = (str(self._bundles),)
        return {
            _RPC.full_name: generic_handler(_RPC, RpcService(self._router), codecs=CALL_CODECS, hide=hide, guard=guard),
            _STREAMS.full_name: generic_handler(
                _STREAMS, StreamService(self._router), codecs=CALL_CODECS, hide=hide, guard=guard
            ),
        }

    def _call_function(self, call: Call, timeout_s: float | None, asking: RunningCall) -> str:
        return patiently(lambda left_s: self._router.call(call, left_s, asking), timeout_s, asking, self._clock_s)

    def close(self) -> None:
        """End all calls and their processes. Does nothing in a forked child."""
        if self._home.is_here:
            self._host.close()
            self._remove_bundles()


def _remove_at_home(directory: Path, home: HomeProcess) -> None:
    """Remove a directory, unless this process was forked from the one that owns it."""
    if home.is_here:
        shutil.rmtree(directory, ignore_errors=True)

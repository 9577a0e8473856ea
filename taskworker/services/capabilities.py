"""OutsideService of the pool, and the workers' client for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from storage.errors import PermissionDenied
from taskworker.calls.call import Call, RunningCall
from taskworker.calls.capabilities import ApiRequest, ApiResponse, Capabilities
from taskworker.protos import outside_pb2
from taskworker.protos.outside_pb2_grpc import OutsideServiceStub
from taskworker.rpc import status
from taskworker.rpc.binding import Caller
from taskworker.services.rpc import CallerWithDeadline, awaited
from taskworker.shares import UserPlaces

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")

_LEAST_S = 0.001
"""Shortest timeout of a request: if its caller's deadline is passing, it fails by the deadline, not as invalid."""


class OutsideService:
    """Gives running calls their capabilities; thread-safe.

    Args:
        call_of: returns the call that a token belongs to; None if it is over.
        capabilities_of: returns the capabilities of that call, given for how many seconds whoever asks waits.
        requests: limits requests to outside APIs.
        lookups: limits name lookups.
    """

    def __init__(
        self,
        call_of: Callable[[str], Call | None],
        capabilities_of: Callable[[Call, float | None], Capabilities],
        requests: UserPlaces,
        lookups: UserPlaces,
    ) -> None:
        self._call_of = call_of
        self._capabilities_of = capabilities_of
        self._requests = requests
        self._lookups = lookups

    def GetSecret(  # noqa: N802 - the names are the contract's
        self, request: outside_pb2.GetSecretRequest, _caller: Caller
    ) -> outside_pb2.GetSecretResponse:
        """A secret granted to the calling function."""
        capabilities = self._capabilities_of(self._call(request.token), None)
        return outside_pb2.GetSecretResponse(value=capabilities.secret(request.name))

    def CallExternalApi(  # noqa: N802
        self, request: outside_pb2.ExternalApiRequest, caller: CallerWithDeadline
    ) -> outside_pb2.ExternalApiResponse:
        """Call an outside API for the calling function."""
        wanted = ApiRequest(
            method=request.method,
            url=request.url,
            headers=tuple((header.name, header.value) for header in request.headers),
            body=request.body,
            timeout_s=_sooner(request.timeout_s or None, caller.time_remaining()),
            cache=request.cache,
            follow_redirects=request.follow_redirects,
        )
        with self._capabilities(request.token, self._requests, caller) as outside:
            response = outside.request(wanted)
        return outside_pb2.ExternalApiResponse(
            status=response.status,
            headers=[outside_pb2.Header(name=name, value=value) for name, value in response.headers],
            body=response.body,
            url=response.url,
            from_cache=response.from_cache,
        )

    def Resolve(  # noqa: N802
        self, request: outside_pb2.ResolveRequest, caller: CallerWithDeadline
    ) -> outside_pb2.ResolveResponse:
        """Resolve a name for the calling function."""
        with self._capabilities(request.token, self._lookups, caller) as outside:
            return outside_pb2.ResolveResponse(answers=outside.resolve(request.name, request.type))

    def _call(self, token: str) -> Call:
        call = self._call_of(token)
        if call is None:
            raise PermissionDenied("this call is not running; only running calls can use secrets, APIs and names")
        return call

    @contextlib.contextmanager
    def _capabilities(self, token: str, places: UserPlaces, caller: CallerWithDeadline) -> Iterator[Capabilities]:
        """The capabilities of a call, while holding one of its user's places."""
        call = self._call(token)
        with places.one(call.user_id):
            yield self._capabilities_of(call, _sooner(None, caller.time_remaining()))


def _sooner(asked_s: float | None, left_s: float | None) -> float | None:
    """The timeout of a request, cut to the caller's deadline."""
    if left_s is None:
        return asked_s
    left_s = max(left_s, _LEAST_S)
    return left_s if asked_s is None else min(asked_s, left_s)


class RemoteCapabilities:
    """The ``Capabilities`` of a call on a worker, which it gets through the pool.

    Args:
        stub: stub of the pool's service.
        address: the pool's address, for error texts.
        token: token of the call.
        timeout_s: seconds for each request.
        asking: the call; when it ends, its requests are cancelled.
    """

    def __init__(
        self, stub: OutsideServiceStub, address: str, token: str, timeout_s: float | None, asking: RunningCall
    ) -> None:
        self._stub = stub
        self._address = address
        self._token = token
        self._timeout_s = timeout_s
        self._asking = asking

    def secret(self, name: str) -> str:
        """See ``Capabilities``."""
        request = outside_pb2.GetSecretRequest(token=self._token, name=name)
        return self._answer(self._stub.GetSecret, request).value

    def request(self, request: ApiRequest) -> ApiResponse:
        """See ``Capabilities``."""
        message = outside_pb2.ExternalApiRequest(
            token=self._token,
            method=request.method,
            url=request.url,
            headers=[outside_pb2.Header(name=name, value=value) for name, value in request.headers],
            body=request.body,
            timeout_s=0.0 if request.timeout_s is None else request.timeout_s,
            cache=request.cache,
            follow_redirects=request.follow_redirects,
        )
        answer = self._answer(self._stub.CallExternalApi, message)
        headers = tuple((header.name, header.value) for header in answer.headers)
        return ApiResponse(answer.status, headers, answer.body, answer.url, answer.from_cache)

    def resolve(self, name: str, kind: str) -> list[str]:
        """See ``Capabilities``."""
        request = outside_pb2.ResolveRequest(token=self._token, name=name, type=kind)
        return list(self._answer(self._stub.Resolve, request).answers)

    def _answer(self, method: grpc.UnaryUnaryMultiCallable[RequestT, AnswerT], request: RequestT) -> AnswerT:
        with status.errors_decoded(self._address):
            return awaited(method.future(request, timeout=self._timeout_s), self._asking)

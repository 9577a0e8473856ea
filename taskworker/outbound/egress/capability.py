"""Requests to outside APIs by one call of a function."""

from __future__ import annotations

from collections.abc import Callable

from taskworker.calls.call import Call
from taskworker.calls.capabilities import ApiRequest, ApiResponse
from taskworker.outbound.egress.proxy import EgressProxy


class EgressCapability:
    """The part of a call's ``Capabilities`` that requests outside APIs.

    Args:
        proxy: the pool's proxy.
        call: the call that makes the requests.
        is_under_way: whether the call is still running; its requests end with it.
    """

    def __init__(self, proxy: EgressProxy, call: Call, is_under_way: Callable[[], bool]) -> None:
        self._proxy = proxy
        self._call = call
        self._is_under_way = is_under_way

    def request(self, request: ApiRequest) -> ApiResponse:
        """See ``Capabilities``."""
        return self._proxy.request(self._call.function, self._call.user_id, request, self._is_under_way)

"""Outside APIs as one call of a function has them."""

from __future__ import annotations

from collections.abc import Callable

from taskworker.calls.call import Call
from taskworker.calls.capabilities import ApiRequest, ApiResponse
from taskworker.outbound.egress.proxy import EgressProxy


class EgressCapability:
    """What a call may request of the world outside (the part of ``Capabilities``).

    Args:
        proxy: of the pool.
        call: that asks.
        is_under_way: whether the call is; what it asked for ends with it.
    """

    def __init__(self, proxy: EgressProxy, call: Call, is_under_way: Callable[[], bool]) -> None:
        self._proxy = proxy
        self._call = call
        self._is_under_way = is_under_way

    def request(self, request: ApiRequest) -> ApiResponse:
        """See ``Capabilities``."""
        return self._proxy.request(self._call.function, self._call.user_id, request, self._is_under_way)

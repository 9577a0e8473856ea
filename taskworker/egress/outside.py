"""Outside APIs as one call of a function has them."""

from __future__ import annotations

from taskworker.egress.proxy import EgressProxy
from taskworker.functions.calls import Call
from taskworker.functions.outside import ApiRequest, ApiResponse, NoOutside


class OutsideApis(NoOutside):
    """What a call may request of the world outside (an ``Outside``)."""

    def __init__(self, proxy: EgressProxy, call: Call) -> None:
        self._proxy = proxy
        self._call = call

    def request(self, request: ApiRequest) -> ApiResponse:
        """See ``Outside``."""
        return self._proxy.request(self._call.function, self._call.user_id, request)

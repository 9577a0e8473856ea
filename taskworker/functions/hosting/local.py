"""Runs functions in a process without a pool."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from taskworker.calls.call import Call, CallReport, Items, RunningCall
from taskworker.functions.hosting.host import FunctionHost
from taskworker.functions.routing.port import RoutedFunction


class LocalWorkers:
    """``Workers`` of routing, with this process as the only worker."""

    def __init__(self, name: str, host: FunctionHost) -> None:
        self._name = name
        self._host = host

    def find(self, name: str) -> RoutedFunction | None:
        """The function that this program declares under ``name``."""
        hosted = self._host.own.get(name)
        return None if hosted is None else RoutedFunction.of(hosted.spec, hosted.image.key)

    def able(self, function: RoutedFunction) -> list[str]:
        """See ``Workers``."""
        return [self._name] if function.name in self._host.own else []

    def obstacles(self, function: RoutedFunction) -> Mapping[str, str]:
        """See ``Workers``."""
        return {} if self.able(function) else {self._name: "has no such function"}

    def place(self, worker: str, call: Call) -> AbstractContextManager[None]:
        """See ``Workers``; there are no limits beyond the router's own places."""
        return nullcontext()

    def invoke(
        self,
        worker: str,
        function: RoutedFunction,
        call: Call,
        timeout_s: float | None,
        running: RunningCall,
        items: Items | None = None,
    ) -> CallReport:
        """See ``Workers``."""
        return self._host.run(self._host.own_function(function.name), call, timeout_s, running, items)

"""The port between routing and the workers that run calls, and what routing knows of a function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from taskworker.calls.call import Call, CallReport, Items, RunningCall
from taskworker.calls.spec import FunctionSpec
from taskworker.errors import (
    ServerBusy,
)
from taskworker.functions.routing.statistics import CallFigures


@dataclass(frozen=True, slots=True)
class RoutedFunction:
    """What routing knows of a function.

    Attributes:
        name: its name.
        version: identifies its code: the version id of a deployed function, otherwise the bundle's key.
        file_id: file id of the deployed bundle; empty: workers' own programs declare the function.
        idempotent, cache_ttl_s, concurrency, queue, needs: as in ``FunctionSpec``.
        wall_s: seconds that a call may take.
        platforms: tags of the platforms that it can run on; none: any.
        keeps: whether its processes serve several calls of one user.
    """

    name: str
    version: str
    file_id: str = ""
    idempotent: bool = True
    cache_ttl_s: float = 0.0
    concurrency: int = 32
    queue: int = 256
    needs: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[str, ...] = ()
    wall_s: float = math.inf
    keeps: bool = False

    @classmethod
    def of(cls, spec: FunctionSpec, version: str, file_id: str = "") -> RoutedFunction:
        """Make it from a function's document."""
        return cls(
            spec.name,
            version,
            file_id,
            spec.idempotent,
            spec.cache_ttl_s,
            spec.concurrency,
            spec.queue,
            spec.needs,
            tuple(spec.platforms),
            spec.limits.wall_s,
            spec.keep is not None,
        )


class WorkerGone(Exception):
    """A worker was lost before it answered.

    Attributes:
        worker: its name.
        may_have_run: whether the call may have reached it.
    """

    def __init__(self, worker: str, *, may_have_run: bool) -> None:
        super().__init__(f"worker {worker} was lost during a call")
        self.worker = worker
        self.may_have_run = may_have_run


class WorkerUnable(ServerBusy):
    """A worker reports that it cannot run a function; the call has not run there, and others may run it."""


class Workers(Protocol):
    """The workers that run calls."""

    def able(self, function: RoutedFunction) -> list[str]:
        """Names of the workers that can run the function now."""

    def obstacles(self, function: RoutedFunction) -> Mapping[str, str]:
        """Why the other live workers cannot, by worker: for example ``{"w1": "has no label gpu=none"}``."""

    def place(self, worker: str, call: Call) -> AbstractContextManager[None]:
        """Hold a place for a call at a worker.

        Raises:
            ServerBusy: raised on entering: the worker runs as many calls as it may.
        """

    def invoke(
        self,
        worker: str,
        function: RoutedFunction,
        call: Call,
        timeout_s: float | None,
        running: RunningCall,
        items: Items | None = None,
    ) -> CallReport:
        """Run a call that has a place there.

        With ``items``, its items are passed on as they arrive, and the report has no result.

        Raises:
            WorkerGone: the worker was lost.
            WorkerUnable: the worker cannot run the function.
            ServerBusy: the worker accepts no more calls now; the call has not run.
        """


@dataclass(frozen=True, slots=True)
class FunctionFigures:
    """Statistics of a function's calls, and how many run and wait now."""

    figures: CallFigures
    running: int
    waiting: int

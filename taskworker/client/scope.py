"""The calls of one operation, which another thread can cancel together. It loads no contract of a service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class _Cancellable(Protocol):
    def cancel(self) -> object: ...


class CallScope:
    """The calls of one operation, so that another thread can cancel it whatever it is at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[_Cancellable] = set()
        self._cancelled = False

    @contextmanager
    def holding(self, call: _Cancellable) -> Iterator[None]:
        """Let ``cancel`` reach ``call`` meanwhile."""
        with self._lock:
            self._calls.add(call)
            cancelled = self._cancelled
        if cancelled:
            call.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._calls.discard(call)

    def cancel(self) -> None:
        """Cancel all calls under way and to come."""
        with self._lock:
            self._cancelled = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()


current_scope: ContextVar[CallScope | None] = ContextVar("current_scope", default=None)
"""The scope that calls made from here belong to, if any."""

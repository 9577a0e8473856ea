"""Cancels all calls of one operation from another thread. Imports no generated code of a service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class _Cancellable(Protocol):
    def cancel(self) -> object: ...


class CallScope:
    """The calls of one operation, so that another thread can cancel it at any point."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[_Cancellable] = set()
        self._cancelled = False

    @contextmanager
    def holding(self, call: _Cancellable) -> Iterator[None]:
        """Within this context, ``cancel`` cancels ``call``."""
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
        """Cancel all running and future calls."""
        with self._lock:
            self._cancelled = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()


current_scope: ContextVar[CallScope | None] = ContextVar("current_scope", default=None)
"""The scope of calls made in this context, if any."""

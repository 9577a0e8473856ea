"""Limits how many calls a server admits at once. Refusing calls early keeps the admitted ones fast."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from taskworker.errors import ServerBusy


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one server.

    Attributes:
        calls: how many calls of any kind may run at once, one thread each; more get RESOURCE_EXHAUSTED.
        streams: how many transfers (pushes, gets and revisions by stream) may run at once; fewer than ``calls``, so
            that short calls always find a thread. Each may hold a pipeline's worth of chunks in memory.
        reserved: further calls for services other than files, so that users, however many, cannot keep a pool's
            workers from renewing their leases.
    """

    calls: int = 64
    streams: int = 32
    reserved: int = 16


DEFAULT_LIMITS = ServerLimits()
DEFAULT_CALLS = DEFAULT_LIMITS.calls + DEFAULT_LIMITS.reserved
"""How many calls a server without a store admits at once."""


class Gate:
    """Lets a bounded number of callers through at once and turns the others away.

    Args:
        places: how many callers.
        what: why others are turned away, for the error's text.
        ready: returns once callers can be served; an admitted caller waits for it while holding its place.
    """

    def __init__(self, places: int, what: str, ready: Callable[[], None] = lambda: None) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._refusal = f"{what}; try again in a moment"
        self._ready = ready

    def place(self) -> Gate:
        """A context that holds one of the places.

        Raises:
            ServerBusy: (on entering) all are taken.
        """
        return self

    def __enter__(self) -> None:
        with self._lock:
            if not self._places:
                raise ServerBusy(self._refusal)
            self._places -= 1
        try:
            self._ready()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._places += 1

"""The latest events of a pool, for operators."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

_KEPT = 200


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """An event that an operator may want to know."""

    time_ms: int
    kind: str
    text: str


class Events:
    """Keeps the latest events, and logs each of them. Thread-safe.

    Args:
        now_ms: milliseconds since 1970.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._events: deque[PoolEvent] = deque(maxlen=_KEPT)

    def note(self, kind: str, text: str) -> None:
        """Record an event."""
        log.info("%s", text)
        self._events.append(PoolEvent(self._now_ms(), kind, text))

    def latest(self) -> list[PoolEvent]:
        """The latest events, oldest first."""
        return list(self._events)

"""How often, how many at once, and how much at once: of each function, and of all."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from taskworker.egress.limits import EgressLimits
from taskworker.errors import ApiBusy

_FUNCTIONS_KEPT = 4096


@dataclass(slots=True)
class _Function:
    tokens: float
    at: float
    running: int = 0
    held: int = 0


class Turn:
    """One request under way; tells how many bytes it holds."""

    def __init__(self, turns: Turns, function: _Function) -> None:
        self._turns = turns
        self._function = function
        self.held = 0

    def hold(self, count: int) -> None:
        """Take note of bytes that are kept until the turn's end.

        Raises:
            ApiBusy: too many are held.
        """
        self._turns.hold(self._function, count)
        self.held += count

    def let_go(self) -> None:
        """Nothing is held any more."""
        held, self.held = self.held, 0
        self._turns.let_go(self._function, held)


class Turns:
    """A token bucket, a count of requests and a count of bytes for each function. Thread-safe.

    Args:
        limits: how much.
        clock_s: monotonic seconds.
    """

    def __init__(self, limits: EgressLimits, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._functions: OrderedDict[str, _Function] = OrderedDict()
        self._held = 0

    @contextmanager
    def turn(self, name: str) -> Iterator[Turn]:
        """A request's turn.

        Raises:
            ApiBusy: the function has made too many lately, or has too many under way.
        """
        function = self._begin(name)
        turn = Turn(self, function)
        try:
            yield turn
        finally:
            turn.let_go()
            with self._lock:
                function.running -= 1

    def hold(self, function: _Function, count: int) -> None:
        """See ``Turn.hold``."""
        limits = self._limits
        with self._lock:
            if function.held + count > limits.function_bytes or self._held + count > limits.held_bytes:
                raise ApiBusy("too many bytes of outside answers are under way; ask for less at once, or later again")
            function.held += count
            self._held += count

    def let_go(self, function: _Function, count: int) -> None:
        """See ``Turn.let_go``."""
        with self._lock:
            function.held -= count
            self._held -= count

    def _begin(self, name: str) -> _Function:
        limits, now = self._limits, self._clock_s()
        with self._lock:
            function = self._functions.setdefault(name, _Function(float(limits.burst), now))
            self._functions.move_to_end(name)
            self._forget()
            function.tokens = min(limits.burst, function.tokens + (now - function.at) * limits.rate)
            function.at = now
            if function.running >= limits.concurrency:
                raise ApiBusy(
                    f"function {name} has {limits.concurrency} requests to outside APIs under way, as many as it may "
                    "have; try again in a moment"
                )
            if function.tokens < 1:
                raise ApiBusy(
                    f"function {name} calls outside APIs more than {limits.rate:g} times a second; try again later"
                )
            function.tokens -= 1
            function.running += 1
            return function

    def _forget(self) -> None:
        """Drop functions that have not asked for long; of those under way nothing is forgotten."""
        while len(self._functions) > _FUNCTIONS_KEPT:
            name, function = next(iter(self._functions.items()))
            if function.running:
                return
            del self._functions[name]

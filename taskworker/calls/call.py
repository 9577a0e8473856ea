"""A call of a function, and its outcome."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from storage.errors import InvalidArgument, StorageError

log = logging.getLogger(__name__)

DEPTH_MAX = 16
LOOPS_MAX = 4
ARGUMENT_CHARS_MAX = 1 << 20
ARGUMENTS_MAX = 1 << 16
"""Each argument costs time at every stop of a call, however short the argument is."""
LINES_MAX = 16_384
"""Lines kept of what one call prints; further lines are dropped."""
LINE_CHARS_MAX = 4_000
ERROR_CHARS_MAX = 64 << 10


class Items(Protocol):
    """Receives the items that a generator yields, as JSON, one by one; an exception raised here ends the call."""

    def __call__(self, item: str, over: Callable[[], bool], /) -> None:
        """Take one item. Waits while the consumer is behind, unless the call is ``over``: items are dropped then."""


@dataclass(frozen=True, slots=True)
class Call:
    """Which function to call, with which arguments, on whose behalf.

    Attributes:
        function: name of the function.
        args: positional arguments as texts: JSON values, or bare words.
        kwargs: keyword arguments as texts, by parameter.
        user_id: the user on whose behalf the function is called.
        call_id: names the call in logs.
        chain: the functions whose calls led to this one, outermost first.
        token: an unguessable token with which the call, while it runs, makes calls and asks the pool for capabilities.
        parent: the token of the call that made this one; empty: no call did.
    """

    function: str
    args: tuple[str, ...] = ()
    kwargs: Mapping[str, str] = field(default_factory=dict)
    user_id: str = ""
    call_id: str = ""
    chain: tuple[str, ...] = ()
    token: str = ""
    parent: str = ""

    def checked(self) -> Call:
        """Return this call if it is within bounds.

        Raises:
            InvalidArgument: there are too many arguments, they are too large, or the chain of calls is too deep.
        """
        count = len(self.args) + len(self.kwargs)
        if count > ARGUMENTS_MAX:
            raise InvalidArgument(f"{count:,} arguments of a call: at most {ARGUMENTS_MAX:,} are allowed; pass a list")
        size = sum(map(len, self.args)) + sum(len(name) + len(text) for name, text in self.kwargs.items())
        if size > ARGUMENT_CHARS_MAX:
            raise InvalidArgument(
                f"the arguments have {size:,} characters, at most {ARGUMENT_CHARS_MAX:,} are allowed; push a file and "
                "pass its id"
            )
        if len(self.chain) >= DEPTH_MAX or self.chain.count(self.function) >= LOOPS_MAX:
            way = " -> ".join((*self.chain[-6:], self.function))
            raise InvalidArgument(
                f"functions call one another too deeply ({way}): at most {DEPTH_MAX} calls deep, and the same function "
                f"at most {LOOPS_MAX} times"
            )
        return self


@dataclass(frozen=True, slots=True)
class OutputLine:
    """A line that a call printed or logged; ``stream`` is ``stdout``, ``stderr`` or ``event``."""

    time_ms: int
    stream: str
    text: str


@dataclass(slots=True)
class CallReport:
    """The outcome of a call: ``result`` as JSON, or ``error``; and what it printed and used."""

    result: str = ""
    error: StorageError | None = None
    output: list[OutputLine] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_bytes: int = 0


class RunningCall:
    """Lets another thread end a call, whatever the call is doing, even several things at once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: list[Callable[[], object]] = []
        self.cancelled = False

    def cancel(self) -> None:
        """End what the call is doing now, and whatever it would do next; all of it, even if some cannot be ended."""
        with self._lock:
            self.cancelled, ends = True, list(self._ends)
        for end in reversed(ends):
            _try(end)

    @contextmanager
    def ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Within this context, :meth:`cancel` also calls ``end``."""
        with self._lock:
            self._ends.append(end)
            cancelled = self.cancelled
        if cancelled:
            _try(end)
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)


def _try(end: Callable[[], object]) -> None:
    try:
        end()
    except Exception:
        log.exception("something that a cancelled call does could not be ended")

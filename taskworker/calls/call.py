"""A call of a function and what became of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from storage.errors import InvalidArgument, StorageError

DEPTH_MAX = 16
LOOPS_MAX = 4
ARGUMENT_CHARS_MAX = 1 << 20
ARGUMENTS_MAX = 1 << 16
"""Each takes time wherever a call comes by, however short it is."""
LINES_MAX = 16_384
"""Of what one call prints; the rest is dropped."""
LINE_CHARS_MAX = 4_000
ERROR_CHARS_MAX = 64 << 10


class Items(Protocol):
    """Gets the items that a generator gives, as JSON, as they come; what it raises ends the call."""

    def __call__(self, item: str, over: Callable[[], bool], /) -> None:
        """Take one. Waits while its taker is behind, but not once the call is ``over``: then none is wanted."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be called, for whom.

    Attributes:
        function: its name.
        args: JSON values, or bare words, as texts.
        kwargs: likewise, by parameter.
        user_id: on whose behalf.
        call_id: names the call in logs.
        chain: the functions whose calls led to this one, outermost first.
        token: with which it asks its pool for what is outside, and makes calls, while it runs; unguessable.
        parent: the token of the call that makes this one; empty: none does.
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
        """Itself, if it may be made.

        Raises:
            InvalidArgument: its arguments are too many or too large, or functions call one another without end.
        """
        count = len(self.args) + len(self.kwargs)
        if count > ARGUMENTS_MAX:
            raise InvalidArgument(f"a call with {count:,} arguments: at most {ARGUMENTS_MAX:,} are taken; pass a list")
        size = sum(map(len, self.args)) + sum(len(name) + len(text) for name, text in self.kwargs.items())
        if size > ARGUMENT_CHARS_MAX:
            raise InvalidArgument(
                f"the arguments have {size:,} characters, at most {ARGUMENT_CHARS_MAX:,} are taken; push a file and "
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
    """What became of a call: ``result`` as JSON, or ``error``; and what it printed and used."""

    result: str = ""
    error: StorageError | None = None
    output: list[OutputLine] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_bytes: int = 0


class RunningCall:
    """Lets another thread end a call, whatever it is at, and be it at several things at once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: list[Callable[[], object]] = []
        self.cancelled = False

    def cancel(self) -> None:
        """End the call, now and whatever it would go on to."""
        with self._lock:
            self.cancelled, ends = True, list(self._ends)
        for end in reversed(ends):
            end()

    @contextmanager
    def ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Meanwhile, calling ``end`` is part of what ends the call."""
        with self._lock:
            self._ends.append(end)
            cancelled = self.cancelled
        if cancelled:
            end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)

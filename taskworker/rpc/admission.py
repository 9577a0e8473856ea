"""Limits how many calls a server admits at once. Refusing calls early keeps the admitted ones fast."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage.clocks import monotonic_s
from taskworker.errors import ServerBusy
from taskworker.rpc.limits import UNARY_BYTES_MAX
from taskworker.rpc.waits import Patience
from taskworker.shares import SharedAmount

_TIMES_THE_FREE = 1
"""A user may hold as many places as are free: half of them if there is no other user."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one server.

    Where a server knows its users, each may hold as many places as are free: half of all, if nobody else has any.

    Attributes:
        calls: how many calls of any kind may run at once, one thread each; more get RESOURCE_EXHAUSTED.
        streams: how many transfers (pushes, gets and revisions by stream) may run at once; fewer than ``calls``, so
            that short calls always find a thread. Each may hold a pipeline's worth of chunks in memory.
        reserved: further calls for services other than files, so that users, however many, cannot keep a pool's
            workers from renewing their leases.
        message_s: seconds until the message of a call, or the first one of a stream, must have come.
        idle_s: seconds that may pass between messages of a stream, and until a caller reads an answer.
        unfinished: how many calls of one caller may wait for a message at once.
        checks: how many users may have one revision each checked against the SHA-256 of the whole file.
        connections: how many connections there may be at once; half of them from one address.
        streams_each: how many calls may be under way on one connection; more wait.
        message_bytes: size of the largest message that is no part of a stream, and of the largest answer to one.
        refusals: how many refusals a second a user gets at once; more come later.
    """

    calls: int = 128
    streams: int = 64
    reserved: int = 16
    message_s: float = 30.0
    idle_s: float = 600.0
    unfinished: int = 32
    checks: int = 8
    connections: int = 4096
    streams_each: int = 1024
    message_bytes: int = UNARY_BYTES_MAX
    refusals: float = 50

    @property
    def patience(self) -> Patience:
        """How long the server waits for its callers."""
        return Patience(self.message_s, self.idle_s, self.unfinished)


DEFAULT_LIMITS = ServerLimits()
MEMBER_LIMITS = ServerLimits(message_bytes=2 * UNARY_BYTES_MAX)
"""For calls of a pool to a worker, which carry what a user sent, and more."""
DEFAULT_CALLS = 80
"""How many calls a server without a store admits at once."""


class Gate:
    """Lets a bounded number of callers through at once and turns the others away.

    Args:
        places: how many callers.
        what: why others are turned away, for the error's text.
        ready: returns once callers can be served; an admitted caller waits for it while holding its place.
        kind: what callers do with a place, for the text if one user holds too many.
        who: what shares the places, for that text.
        times: how many times the number of free places a user may hold.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        places: int,
        what: str,
        ready: Callable[[], None] = lambda: None,
        kind: str = "such calls",
        times: float = _TIMES_THE_FREE,
        who: str = "user",
        clock_s: Callable[[], float] = monotonic_s,
    ) -> None:
        self._lock = threading.Lock()
        self._clock_s = clock_s
        self._latest: tuple[tuple[str | None, float], ...] = ()  # when the last two users came, the later one first
        self._places = SharedAmount(places, times=times)
        self._refusal = f"{what}; try again in a moment"
        self._ready = ready
        self._kind = f"{kind} of this {who}"

    def place(self, user: str | None = None) -> Place:
        """A context that holds one of the places.

        Args:
            user: who gets it; None: somebody whose share is not limited.

        Raises:
            ServerBusy: (on entering) all are taken, or this user holds too many.
        """
        return Place(self, user)

    def enter(self, user: str | None) -> None:
        """Take a place, until :meth:`leave`.

        Raises:
            ServerBusy: see :meth:`place`.
        """
        with self._lock:
            before, now_s = self._latest, self._clock_s()
            # Of the last two users, mostly the later one comes again.
            others = before[1:] if before and before[0][0] == user else before[:1]
            self._latest = ((user, now_s), *others)
            taken = self._places.take(user)
            mine = 0 if taken or user is None or not self._places.free else self._places.of(user)
        if not taken and mine:
            raise ServerBusy(
                f"{mine} {self._kind} are under way, as many as one may have beside others; try again in a moment"
            )
        if not taken:
            raise ServerBusy(self._refusal)
        try:
            self._ready()
        except BaseException:
            self.leave(user)
            raise

    def has_others(self, user: str, within_s: float) -> bool:
        """Whether anybody but this user has asked for a place within the last ``within_s`` seconds."""
        now_s = self._clock_s()
        return any(other != user and now_s - came_s <= within_s for other, came_s in self._latest)

    def leave(self, user: str | None) -> None:
        """Give a place back."""
        with self._lock:
            self._places.give_back(user)


class Entry:
    """Gives calls their places as they begin, before their messages have come, by who is at the other end of the line.

    Args:
        calls: the places.
        whose: returns to whom a call counts, from gRPC's ServicerContext; None: to somebody whose share is not limited.
            Raises PermissionDenied if the caller has nothing to ask for here.
    """

    def __init__(self, calls: Gate, whose: Callable[[Any], str | None]) -> None:
        self._calls = calls
        self._whose = whose

    def enter(self, context: object) -> tuple[str | None, Place]:
        """Return to whom a call counts, and its place, taken.

        Raises:
            PermissionDenied: see above.
            ServerBusy: the caller holds too many.
        """
        whose = self._whose(context)
        return whose, self._calls.place(whose).take()


class Place:
    """Holds a place of a gate while its context lasts."""

    __slots__ = ("_gate", "_user")

    def __init__(self, gate: Gate, user: str | None) -> None:
        self._gate = gate
        self._user = user

    def __enter__(self) -> None:
        self._gate.enter(self._user)

    def __exit__(self, *_: object) -> None:
        self.leave()

    def take(self) -> Place:
        """Take the place, until :meth:`leave`."""
        self._gate.enter(self._user)
        return self

    def leave(self) -> None:
        """Give the place back."""
        self._gate.leave(self._user)

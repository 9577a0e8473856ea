"""Methods of a server, and calls of them that are being carried out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from enum import Enum
from typing import NamedTuple, Protocol

from taskworker.transport.wire.body_memory import BodyMemory, Charge
from taskworker.transport.wire.budget import Budget
from taskworker.transport.wire.framing import BODY_BYTES_MAX, STREAM_AHEAD, Header
from taskworker.transport.wire.outgoing import Parts

log = logging.getLogger(__name__)


class Style(Enum):
    """How a method is carried out."""

    QUICK = "in the thread that reads the connection, so that other calls on it wait"
    SLOW = "in another thread"
    STREAM = "in other threads, one after another, with many messages"


class Caller(Protocol):
    """The caller that waits for an answer."""

    def is_active(self) -> bool:
        """Whether it still waits."""


class Method(NamedTuple):
    """A method of a server.

    Attributes:
        name: for the log.
        style: how it is carried out. A function decides by the call's body.
        serve: (body, caller) → the answer's parts; for a stream, an iterator of them, which is used by one thread at a
            time. The body's memory is used again when the call has been answered; parts must not refer to it.
    """

    name: str
    style: Style | Callable[[memoryview], Style]
    serve: Callable[[memoryview, Caller], Parts] | Callable[[memoryview, Caller], Iterator[Parts]]

    def style_of(self, body: memoryview) -> Style:
        """How this call is carried out."""
        return self.style if isinstance(self.style, Style) else self.style(body)


class Resources(NamedTuple):
    """What all connections of a server share.

    Attributes:
        bodies: bounds the memory of bodies and of calls under way.
        answers: bounds the memory of answers that are not taken.
        slow: runs what may take long.
        streams: runs streams.
        clock_s: monotonic seconds.
        body_bytes_max: the largest body that a call may have.
        strangers_body_bytes_max: the same for callers before one of their calls was carried out.
        strangers_bodies: ``bodies`` for callers before one of their calls was carried out; None: ``bodies``.
    """

    bodies: BodyMemory
    answers: Budget
    slow: Executor
    streams: Executor
    clock_s: Callable[[], float]
    body_bytes_max: int = BODY_BYTES_MAX
    strangers_body_bytes_max: int = BODY_BYTES_MAX
    strangers_bodies: BodyMemory | None = None


class Serving:
    """A call that is being carried out. See :class:`Caller`. Its connection's lock guards it.

    Attributes:
        header: the call's.
        body: what was sent with it, in ``memory``.
        charge: for this memory, and for the call.
        cancelled: whether the caller has given it up.
        allowed: of a stream, how many messages may be sent.
        messages: of a stream, what is still to be sent; None before the first message.
        parked_s: of a stream, since when it waits for the caller; None: it does not.
        slow: whether it takes one of the connection's places for slow calls.
    """

    __slots__ = (
        "_clock_s",
        "_until_s",
        "allowed",
        "body",
        "cancelled",
        "charge",
        "header",
        "memory",
        "messages",
        "parked_s",
        "slow",
    )

    def __init__(self, header: Header, memory: bytearray, charge: Charge, clock_s: Callable[[], float]) -> None:
        self.header = header
        self.charge = charge
        self.body = memoryview(memory)[: header.length]
        self.memory = memory
        self.cancelled = False
        self.allowed = STREAM_AHEAD
        self.messages: Iterator[Parts] | None = None
        self.parked_s: float | None = None
        self.slow = False
        self._clock_s = clock_s
        self._until_s = clock_s() + header.value / 1000 if header.value else None

    def is_active(self) -> bool:
        """See :class:`Caller`."""
        return not self.cancelled and not self.is_late

    def close(self) -> None:
        """End a stream's messages."""
        close = getattr(self.messages, "close", None)
        if close is not None:
            try:
                close()
            except Exception:
                log.exception("a stream could not be ended")

    @property
    def is_late(self) -> bool:
        """Whether the caller's time has run out."""
        return self._until_s is not None and self._clock_s() >= self._until_s

"""What may come over a call's channel, and when. Everything else is a violation."""

from __future__ import annotations

from enum import Enum

from taskworker.sandbox.errors import LimitExceeded, ProtocolViolation
from taskworker.sandbox.frames import (
    FROM_SANDBOX,
    HELLO,
    VERSION,
    Failure,
    Frame,
    FrameDecoder,
    FrameError,
    Kind,
    decode_failure,
)


class State(Enum):
    """Where a conversation is."""

    STARTING = "before the hello"
    WAITING = "before the request"
    RUNNING = "while the call runs"
    ASKED = "while an ask is being answered"
    DONE = "after the end"


_MAY_COME: dict[State, tuple[Kind, ...]] = {
    State.STARTING: (Kind.HELLO,),
    State.WAITING: (),
    State.RUNNING: (Kind.ASK, Kind.RESULT, Kind.FAILURE),
    State.ASKED: (),
    State.DONE: (),
}
_NEXT = {
    Kind.HELLO: State.WAITING,
    Kind.ASK: State.ASKED,
    Kind.RESULT: State.DONE,
    Kind.FAILURE: State.DONE,
}


class Conversation:
    """The host's side of one channel; holds no descriptor.

    Args:
        result_bytes: how large the result may be.
    """

    __slots__ = ("_decoder", "_result_bytes", "state")

    def __init__(self, result_bytes: int) -> None:
        self.state = State.STARTING
        self._result_bytes = result_bytes
        self._decoder = FrameDecoder(FROM_SANDBOX)

    def feed(self, data: bytes) -> Frame | None:
        """Take bytes that came; give the frame they complete, if they do.

        Raises:
            ProtocolViolation: they are not what may come now.
            LimitExceeded: a result above the limit.
        """
        if not _MAY_COME[self.state]:
            raise ProtocolViolation(f"the sandbox sent {len(data)} bytes {self.state.value}")
        self._decoder.feed(data)
        try:
            self._judge_head()
            frame = self._decoder.next()
        except FrameError as error:
            raise ProtocolViolation(f"the sandbox sent {error}") from None
        if frame is None:
            return None
        if self._decoder.pending:
            raise ProtocolViolation(f"the sandbox sent {self._decoder.pending} bytes after a {frame.kind.name} frame")
        if frame.kind is Kind.HELLO and frame.payload != HELLO.pack(VERSION):
            raise ProtocolViolation(f"the sandbox speaks frames of version {frame.payload.hex()}, not {VERSION}")
        self.state = _NEXT[frame.kind]
        return frame

    def requested(self) -> None:
        """Note that the request is being sent."""
        self.state = State.RUNNING

    def answered(self) -> None:
        """Note that the answer is being sent."""
        self.state = State.RUNNING

    def _judge_head(self) -> None:
        """Refuse a frame by its head, before its bytes are waited for."""
        head = self._decoder.head()
        if head is None:
            return
        kind, length = head
        if kind not in _MAY_COME[self.state]:
            raise ProtocolViolation(f"the sandbox sent a {kind.name} frame {self.state.value}")
        if kind is Kind.RESULT and length > self._result_bytes:
            raise LimitExceeded("result", self._result_bytes)


def failure_of(frame: Frame) -> Failure:
    """Read a FAILURE frame.

    Raises:
        ProtocolViolation: it cannot be read.
    """
    try:
        return decode_failure(frame.payload)
    except FrameError as error:
        raise ProtocolViolation(f"the sandbox sent {error}") from None

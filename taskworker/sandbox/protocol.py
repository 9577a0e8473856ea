"""Which frames a call may send, and when. Everything else is a protocol violation."""

from __future__ import annotations

from enum import Enum

from taskworker.sandbox.errors import LimitExceeded, ProtocolViolation
from taskworker.sandbox.frames import (
    ASKS_BYTES_MAX,
    ASKS_MAX,
    FROM_SANDBOX,
    HELLO,
    VERSION,
    Failure,
    Frame,
    FrameDecoder,
    FrameError,
    Kind,
    decode_failure,
    split_number,
)


class State(Enum):
    """State of a call's channel; the value completes error texts."""

    STARTING = "before the hello"
    WAITING = "before the request"
    RUNNING = "while the call runs"
    DONE = "after the end"


_MAY_COME: dict[State, tuple[Kind, ...]] = {
    State.STARTING: (Kind.HELLO,),
    State.WAITING: (),
    State.RUNNING: (Kind.ASK, Kind.WITHDRAW, Kind.ITEM, Kind.RESULT, Kind.FAILURE),
    State.DONE: (),
}
_NEXT = {
    Kind.HELLO: State.WAITING,
    Kind.ASK: State.RUNNING,
    Kind.WITHDRAW: State.RUNNING,
    Kind.ITEM: State.RUNNING,
    Kind.RESULT: State.DONE,
    Kind.FAILURE: State.DONE,
}


class CallProtocol:
    """The host's side of one channel, as a state machine without a descriptor.

    Args:
        result_bytes: the largest size of the result, or of each item if the result comes in parts.
    """

    __slots__ = ("_asked", "_decoder", "_result_bytes", "_withdrawable", "state")

    def __init__(self, result_bytes: int) -> None:
        self.state = State.STARTING
        self._result_bytes = result_bytes
        self._decoder = FrameDecoder(FROM_SANDBOX)
        self._asked: dict[int, int] = {}  # number → bytes
        self._withdrawable = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take received bytes; return the frames they complete.

        Raises:
            ProtocolViolation: the bytes are not allowed in this state.
            LimitExceeded: the result is larger than allowed.
        """
        if not _MAY_COME[self.state]:
            raise ProtocolViolation(f"the sandbox sent {len(data)} bytes {self.state.value}")
        self._decoder.feed(data)
        frames: list[Frame] = []
        try:
            while (frame := self._next()) is not None:
                self._judge(frame)
                self.state = _NEXT[frame.kind]
                frames.append(frame)
        except FrameError as error:
            raise ProtocolViolation(f"the sandbox sent {error}") from None
        if self._decoder.pending and not _MAY_COME[self.state]:
            raise ProtocolViolation(f"the sandbox sent {self._decoder.pending} bytes {self.state.value}")
        return frames

    def again(self) -> None:
        """After a call has ended, be ready for the next request."""
        self.state = State.WAITING

    def requested(self) -> None:
        """Note that the request is being sent."""
        self.state = State.RUNNING

    def answered(self, number: int) -> None:
        """Note that the answer to an ask is being sent; from any thread."""
        self._asked.pop(number, None)

    def _next(self) -> Frame | None:
        self._judge_head()
        return self._decoder.next()

    def _judge(self, frame: Frame) -> None:
        if frame.kind is Kind.HELLO and frame.payload != HELLO.pack(VERSION):
            raise ProtocolViolation(f"the sandbox speaks frames of version {frame.payload.hex()}, not {VERSION}")
        if frame.kind is Kind.ASK:
            number, _ = split_number(frame.payload)
            if number in self._asked or len(self._asked) >= ASKS_MAX:
                raise ProtocolViolation(f"the sandbox asks with a number in use, or more than {ASKS_MAX} at once")
            self._asked[number] = len(frame.payload)
            self._withdrawable += 1
        elif frame.kind is Kind.WITHDRAW:
            # The ask may have been answered already, as the answer may be on its way. So only the count is checked.
            split_number(frame.payload)
            self._withdrawable -= 1
            if self._withdrawable < 0:
                raise ProtocolViolation("the sandbox withdraws more than it asked")
        elif frame.kind in (Kind.RESULT, Kind.FAILURE) and self._asked:
            raise ProtocolViolation(f"the sandbox sent a {frame.kind.name} frame while an ask is being answered")

    def _judge_head(self) -> None:
        """Refuse a frame by its header, before its payload has arrived."""
        head = self._decoder.head()
        if head is None:
            return
        kind, length = head
        if kind not in _MAY_COME[self.state]:
            raise ProtocolViolation(f"the sandbox sent a {kind.name} frame {self.state.value}")
        if kind is Kind.ASK and self._asked_bytes() + length > ASKS_BYTES_MAX:
            raise ProtocolViolation(f"the sandbox has asks of more than {ASKS_BYTES_MAX} bytes under way")
        if kind in (Kind.RESULT, Kind.ITEM) and length > self._result_bytes:
            raise LimitExceeded("result", self._result_bytes)

    def _asked_bytes(self) -> int:
        return sum(list(self._asked.values()))  # an atomic copy: other threads send answers meanwhile


def failure_of(frame: Frame) -> Failure:
    """Decode a FAILURE frame.

    Raises:
        ProtocolViolation: the frame cannot be decoded.
    """
    try:
        return decode_failure(frame.payload)
    except FrameError as error:
        raise ProtocolViolation(f"the sandbox sent {error}") from None

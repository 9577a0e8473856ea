"""A call's one way out: it gets its request, asks its worker, and gives its result."""

from __future__ import annotations

import os
import threading

from taskworker.sandbox.frames import (
    FRAME_BYTES_MAX,
    HELLO,
    TO_SANDBOX,
    VERSION,
    Cause,
    Frame,
    FrameDecoder,
    Kind,
    decode_failure,
    encode,
    encode_failure,
)

_RECEIVE_BYTES = 256 << 10


class AskFailed(Exception):
    """The worker did not answer what was asked.

    Attributes:
        type_name: the name of the error's class on the worker's side.
        text: what it says.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}")
        self.type_name = type_name
        self.text = text


class ChannelClosed(Exception):
    """The worker hung up: the call has ended."""


class Channel:
    """The sandbox's end of a call's channel. `ask` may be called from any thread; asks take turns.

    Args:
        descriptor: of a connected stream socket. Not an object of ``socket``: each object that a call makes
            and uses is memory copied.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._decoder = FrameDecoder(TO_SANDBOX)
        self._turn = threading.Lock()

    def ask(self, payload: bytes) -> bytes:
        """Ask the worker and wait for its answer.

        Raises:
            AskFailed: the worker refused, or failed.
            FrameError: the payload is larger than an ask may be.
        """
        frame = encode(Kind.ASK, payload)
        with self._turn:
            self._send(frame)
            answer = self._receive()
        if answer.kind is Kind.ANSWER_FAILED:
            failure = decode_failure(answer.payload)
            raise AskFailed(failure.type_name, failure.text)
        return answer.payload

    def hello(self) -> None:
        """Say that this process is ready for its request."""
        self._send(encode(Kind.HELLO, HELLO.pack(VERSION)))

    def request(self) -> bytes:
        """Wait for the request."""
        with self._turn:
            return self._receive().payload

    def finish(self, result: bytes, most: int) -> None:
        """Give the result, or say that it has more bytes than ``most``."""
        if len(result) > min(most, FRAME_BYTES_MAX):
            self.fail(Cause.RESULT_TOO_LARGE, "ResultTooLarge", str(len(result)))
            return
        with self._turn:
            self._send(encode(Kind.RESULT, result))

    def fail(self, cause: Cause, type_name: str, text: str) -> None:
        """Say why there is no result."""
        with self._turn:
            self._send(encode_failure(Kind.FAILURE, cause, type_name, text))

    def wait_for_end(self) -> None:
        """Return when the worker hangs up."""
        os.read(self._descriptor, 1)

    def _send(self, frame: bytes) -> None:
        sent = os.write(self._descriptor, frame)
        while sent < len(frame):
            sent += os.write(self._descriptor, memoryview(frame)[sent:])

    def _receive(self) -> Frame:
        while (frame := self._decoder.next()) is None:
            data = os.read(self._descriptor, _RECEIVE_BYTES)
            if not data:
                raise ChannelClosed
            self._decoder.feed(data)
        return frame

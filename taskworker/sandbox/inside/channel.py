"""A call's channel, its only connection to the outside: for its request, asks to its worker, and its result."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

from taskworker.sandbox.frames import (
    ASKS_BYTES_MAX,
    ASKS_MAX,
    FRAME_BYTES_MAX,
    HEADER,
    HELLO,
    NUMBER,
    TO_SANDBOX,
    VERSION,
    Cause,
    Frame,
    FrameDecoder,
    FrameError,
    Kind,
    decode_failure,
    encode,
    encode_failure,
    split_number,
)

if TYPE_CHECKING:  # large; imported by code that awaits
    import asyncio

_HELLO = encode(Kind.HELLO, HELLO.pack(VERSION))
_REQUEST = bytes([Kind.REQUEST])
_RECEIVE_BYTES = 256 << 10
_LOOK_S = 0.01


class AskFailed(Exception):
    """The worker refused an ask, or failed to answer it.

    Attributes:
        type_name: name of the error's class on the worker's side.
        text: text of that error.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}")
        self.type_name = type_name
        self.text = text


class CallFailure(Exception):
    """The call has no result; its caller is told why.

    Attributes:
        cause: kind of the failure.
        type_name: name of the exception's class; empty if there was no exception.
        text: what went wrong.
    """

    def __init__(self, cause: Cause, type_name: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause
        self.type_name = type_name
        self.text = text


class ChannelClosed(Exception):
    """The call has ended: the worker hung up, or the result was sent."""


class Channel:
    """The sandbox's end of a call's channel. `ask` may be called from several threads at the same time.

    Of the threads that wait for answers, one reads and hands the others their answers. If coroutines wait (`aask`),
    their event loop reads while no thread does, without an extra thread.

    Args:
        descriptor: descriptor of a connected stream socket. A ``socket`` object would cost every call a copy of more
            memory.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._decoder = FrameDecoder(TO_SANDBOX)
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._answers: dict[int, Frame] = {}
        self._asked: dict[int, int] = {}  # number → bytes
        self._futures: dict[int, asyncio.Future[Frame]] = {}
        self._withdrawn: set[int] = set()
        self._last_number = 0
        self._reading = False
        self._over = False

    def ask(self, payload: bytes) -> bytes:
        """Ask the worker and wait for its answer.

        Raises:
            AskFailed: the worker refused the ask, or failed.
            ChannelClosed: the call has ended.
            FrameError: the payload is larger than an ask may be.
        """
        number = self._begun(len(payload) + NUMBER.size)
        try:
            frame = encode(Kind.ASK, NUMBER.pack(number) + payload)
            with self._sending:
                self._send(frame)
            answer = self._answer(number)
        finally:
            self._ended(number)
        return _content_of(answer)

    async def aask(self, payload: bytes) -> bytes:
        """Like `ask`, for coroutines. Cancelling it withdraws the ask.

        Raises:
            AskFailed: the worker refused the ask, or failed.
            ChannelClosed: the call has ended.
            FrameError: the payload is larger than an ask may be.
        """
        import asyncio  # already imported by code that awaits

        size = len(payload) + NUMBER.size
        while (number := self._begun_at_once(size)) is None:  # noqa: ASYNC110 - threads do not notify loops
            await asyncio.sleep(_LOOK_S)
        try:
            frame = encode(Kind.ASK, NUMBER.pack(number) + payload)
        except FrameError:
            self._ended(number)
            raise
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Frame] = loop.create_future()
        with self._changed:
            if not any(other.get_loop() is loop for other in self._futures.values()):
                loop.add_reader(self._descriptor, self._readable)
            self._futures[number] = answer
        try:
            with self._sending:
                self._send(frame)
            return _content_of(await answer)
        finally:
            self._leave(number, loop)

    def hello(self) -> None:
        """Tell the host that this process is ready for its request."""
        self._send(_HELLO)

    def request(self) -> bytes:
        """Wait for a request.

        Raises:
            ChannelClosed: the host hung up; no request will come.
        """
        self._over = False
        data = os.read(self._descriptor, _RECEIVE_BYTES)
        if not data:
            raise ChannelClosed
        # The data is nearly always exactly one complete request. This shortcut writes to less memory than the decoder.
        if (
            data[:1] == _REQUEST
            and len(data) == HEADER.size + HEADER.unpack_from(data)[1]
            and not self._decoder.pending
        ):
            return data[HEADER.size :]
        self._decoder.feed(data)
        return self._receive().payload

    def item(self, content: bytes) -> None:
        """Send a part of the result.

        Raises:
            CallFailure: the part is larger than any result may be.
        """
        if len(content) > FRAME_BYTES_MAX:
            raise _too_large(content)
        frame = encode(Kind.ITEM, content)
        with self._sending:
            self._send(frame)

    def finish(self, result: bytes, most: int) -> None:
        """Send the result, or a failure if it is larger than ``most`` bytes."""
        if len(result) > min(most, FRAME_BYTES_MAX):
            failure = _too_large(result)
            self.fail(failure.cause, failure.type_name, failure.text)
            return
        self._await_asks()
        with self._sending:
            self._send(encode(Kind.RESULT, result))

    def fail(self, cause: Cause, type_name: str, text: str) -> None:
        """Send a failure instead of a result."""
        self._await_asks()
        with self._sending:
            self._send(encode_failure(cause, type_name, text))

    def _begun(self, size: int) -> int:
        with self._changed:
            while self._is_full(size) and not self._over:
                self._await_change()
            return self._numbered(size)

    def _begun_at_once(self, size: int) -> int | None:
        """Return a number for a new ask; None if there are too many under way."""
        with self._changed:
            return None if self._is_full(size) and not self._over else self._numbered(size)

    def _numbered(self, size: int) -> int:
        """Return the number of a new ask. The caller holds the lock."""
        if self._over:
            raise ChannelClosed
        self._last_number = number = (self._last_number + 1) % (1 << 32)
        self._asked[number] = size
        return number

    def _leave(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        """Note that a coroutine waits no longer; if its answer has not come, withdraw its ask."""
        with self._sending:  # throughout: nothing may be withdrawn after the result is sent
            with self._changed:
                unanswered = self._futures.pop(number, None) is not None
                if unanswered:
                    self._withdrawn.add(number)
                if not any(other.get_loop() is loop for other in self._futures.values()) and not loop.is_closed():
                    loop.remove_reader(self._descriptor)
            if unanswered:
                self._send(encode(Kind.WITHDRAW, NUMBER.pack(number)))

    def _is_full(self, size: int) -> bool:
        return len(self._asked) >= ASKS_MAX or sum(self._asked.values()) + size > ASKS_BYTES_MAX

    def _ended(self, number: int) -> None:
        with self._changed:
            self._asked.pop(number, None)
            self._changed.notify_all()

    def _answer(self, number: int) -> Frame:
        with self._changed:
            while number not in self._answers:
                if self._reading:
                    self._changed.wait()
                else:
                    self._read_one()
            return self._answers.pop(number)

    def _read_one(self) -> None:
        """Read an answer to any ask. The caller holds the lock, which is released while waiting."""
        self._reading = True
        self._changed.release()
        try:
            frame: Frame | None = self._receive()
        finally:
            self._changed.acquire()
            self._reading = False
            self._changed.notify_all()
        while frame is not None:  # also answers already in the decoder, for which poll would not wake a loop
            self._hand_over(frame)
            frame = self._decoder.next()

    def _readable(self) -> None:
        """Read answers for coroutines, unless a thread is reading. Called by their event loop."""
        with self._changed:
            if self._reading or not self._has_come():
                return
            data = os.read(self._descriptor, _RECEIVE_BYTES)
            if data:
                self._decoder.feed(data)
                while (frame := self._decoder.next()) is not None:
                    self._hand_over(frame)
            else:  # the worker hung up
                for number in list(self._futures):
                    self._answer_to(number, None)
            self._changed.notify_all()

    def _has_come(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def _hand_over(self, frame: Frame) -> None:
        """Pass an answer to the thread or coroutine that waits for it. The caller holds the lock."""
        number, _ = split_number(frame.payload)
        if number in self._futures:
            self._answer_to(number, frame)
        elif number in self._withdrawn:
            self._withdrawn.discard(number)
            del self._asked[number]
        else:
            self._answers[number] = frame

    def _answer_to(self, number: int, frame: Frame | None) -> None:
        """Pass an answer to a coroutine, or None if the channel was closed. The caller holds the lock."""
        answer = self._futures.pop(number)
        del self._asked[number]
        with contextlib.suppress(RuntimeError):  # its loop was closed
            answer.get_loop().call_soon_threadsafe(_settle, answer, frame)

    def _await_asks(self) -> None:
        """Allow no new asks, and wait for those under way: no answer may come after the result."""
        with self._changed:
            self._over = True
            if not self._asked and not self._withdrawn:
                return
        with self._sending:
            with self._changed:
                self._over = True
                self._changed.notify_all()
                left = list(self._futures)  # of event loops that have stopped or are no longer needed
                self._futures.clear()
                self._withdrawn.update(left)
            for number in left:
                self._send(encode(Kind.WITHDRAW, NUMBER.pack(number)))
        with self._changed:
            while self._asked:
                self._await_change()

    def _await_change(self) -> None:
        """Wait for a change. The caller holds the lock. Reads itself if no thread does: a loop may be blocked."""
        if self._reading or not (self._futures or self._withdrawn):
            self._changed.wait()
        else:
            self._read_one()

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


def _settle(answer: asyncio.Future[Frame], frame: Frame | None) -> None:
    if answer.done():
        return
    if frame is None:
        answer.set_exception(ChannelClosed())
    else:
        answer.set_result(frame)


def _content_of(answer: Frame) -> bytes:
    content = answer.payload[NUMBER.size :]
    if answer.kind is Kind.ANSWER_FAILED:
        failure = decode_failure(content)
        raise AskFailed(failure.type_name, failure.text)
    return content


def _too_large(result: bytes) -> CallFailure:
    return CallFailure(Cause.RESULT_TOO_LARGE, "ResultTooLarge", str(len(result)))

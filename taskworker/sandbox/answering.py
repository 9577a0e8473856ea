"""Answers the asks of one call, several at the same time, each in its own thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

from taskworker.sandbox.errors import CallCrashed
from taskworker.sandbox.frames import NUMBER, Cause, Kind, encode, encode_failure
from taskworker.sandbox.room import PATIENCE_S

_RETRY_S = 0.05


class Asked:
    """An ask that is being answered, and that the call may withdraw meanwhile. Thread-safe."""

    __slots__ = ("_end", "_lock", "_withdrawn")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._withdrawn = False
        self._end: Callable[[], object] | None = None

    def withdraw(self) -> None:
        """Note that nobody waits for the answer any more. An answer must still be sent, and soon."""
        with self._lock:
            self._withdrawn, end = True, self._end
        if end is not None:
            end()

    @contextlib.contextmanager
    def ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Within this context, call ``end`` when the ask is withdrawn; at once if it already was."""
        with self._lock:
            self._end, withdrawn = end, self._withdrawn
        if withdrawn:
            end()
        try:
            yield
        finally:
            with self._lock:
                self._end = None


Answer = Callable[[bytes, Asked], bytes]
"""Computes the answer to an ask."""


class Answering:
    """Threads that answer the asks of one call.

    A thread is started when an ask comes and no thread is idle. Threads are reused and end with the call; as a call has
    at most `ASKS_MAX` asks under way, there are no more threads than that.

    Args:
        answer: computes the reply to an ask; an exception it raises is sent to the call.
        send: sends a reply's frame to the call, given the ask's number and the frame. If it raises `OSError`, the call
            has ended, and the reply is dropped.
    """

    def __init__(self, answer: Answer, send: Callable[[int, bytes], None]) -> None:
        self._answer = answer
        self._send = send
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._asks: queue.SimpleQueue[tuple[int, bytes, Asked] | None] = queue.SimpleQueue()
        self._asked: dict[int, Asked] = {}
        self._idle = 0
        self._threads = 0
        self._owed = 0

    def take(self, number: int, ask: bytes) -> None:
        """Hand an ask to a thread; returns at once."""
        asked = Asked()
        with self._changed:
            self._asked[number] = asked
            self._owed += 1
            starts = not self._idle
            if starts:
                self._threads += 1
            else:
                self._idle -= 1
        if starts:
            self._start()
        self._asks.put((number, ask, asked))

    def withdraw(self, number: int) -> None:
        """Tell the thread that answers an ask that nobody waits for the answer any more."""
        with self._changed:
            asked = self._asked.get(number)
        if asked is not None:
            asked.withdraw()

    def _start(self) -> None:
        """Start a thread.

        If the machine has no room for one, the call's other threads answer instead; without any, this waits for room.

        Raises:
            CallCrashed: not even the first thread could be started within `PATIENCE_S`.
        """
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                threading.Thread(target=self._work, name="answers", daemon=True).start()
            except RuntimeError as error:
                with self._changed:
                    if self._threads > 1:
                        self._threads -= 1
                        return
                if time.monotonic() >= until:
                    raise CallCrashed(f"this worker could not answer the function: {error}") from error
                time.sleep(_RETRY_S)
            else:
                return

    def close(self, wait_s: float) -> bool:
        """Let the threads end after the asks that they have taken.

        Args:
            wait_s: how long to wait until all replies are sent, in seconds.

        Returns:
            Whether all replies are sent.
        """
        with self._changed:
            threads, self._threads = self._threads, 0
        for _ in range(threads):
            self._asks.put(None)
        with self._changed:
            return self._changed.wait_for(lambda: not self._owed, wait_s)

    def _work(self) -> None:
        while (taken := self._asks.get()) is not None:
            number, ask, asked = taken
            reply = self._reply(number, ask, asked)
            with self._changed:
                del self._asked[number]  # before the reply, after which another ask may have this number
                self._idle += 1  # before the reply, after which the next ask may come
            with contextlib.suppress(OSError), self._sending:
                self._send(number, reply)
            with self._changed:
                self._owed -= 1
                self._changed.notify_all()

    def _reply(self, number: int, ask: bytes, asked: Asked) -> bytes:
        try:
            return encode(Kind.ANSWER, NUMBER.pack(number) + self._answer(ask, asked))
        except Exception as error:  # any exception is reported to the call
            return encode_failure(Cause.RAISED, type(error).__name__, str(error), number=number)

"""Answers what one call asks: several asks at the same time, each in a thread of this module."""

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
    """An ask that is being answered; the one who asked may have no use for the answer any more. Thread-safe."""

    __slots__ = ("_end", "_lock", "_withdrawn")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._withdrawn = False
        self._end: Callable[[], object] | None = None

    def withdraw(self) -> None:
        """Nobody waits for the answer any more; some answer is due all the same, and soon."""
        with self._lock:
            self._withdrawn, end = True, self._end
        if end is not None:
            end()

    @contextlib.contextmanager
    def ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Meanwhile, ``end`` is called if the ask is withdrawn, or has been."""
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
"""Gives the answer to an ask."""


class Answering:
    """Threads are started as asks come, used again, and end with it. How many, `ASKS_MAX` bounds.

    Args:
        answer: gives the reply to an ask; what it raises is told to the one who asked.
        send: sends a reply's frame to the call; told the ask's number, too. An `OSError` of it is the call's end.
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
        """Have an ask answered; returns at once."""
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
        """Let an ask be answered soon, as nobody waits for it any more."""
        with self._changed:
            asked = self._asked.get(number)
        if asked is not None:
            asked.withdraw()

    def _start(self) -> None:
        """Start a thread; if the machine has none to give, those that there are answer, or the first is waited for."""
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
        """Let the threads end when they have answered what they are at.

        Returns:
            Whether all replies have been sent, after waiting for that for so long.
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
                del self._asked[number]  # before the reply, after which another may have its number
                self._idle += 1  # before the reply, after which the next ask may come
            with contextlib.suppress(OSError), self._sending:
                self._send(number, reply)
            with self._changed:
                self._owed -= 1
                self._changed.notify_all()

    def _reply(self, number: int, ask: bytes, asked: Asked) -> bytes:
        try:
            return encode(Kind.ANSWER, NUMBER.pack(number) + self._answer(ask, asked))
        except Exception as error:  # whatever an answer raises is told to the one who asked
            return encode_failure(Cause.RAISED, type(error).__name__, str(error), number=number)

"""How processes of calls ended: asks the zygote, which is their parent."""

from __future__ import annotations

import socket
import threading
import time

from taskworker.sandbox.inside import init, zygote

ENDING_TIMEOUT_S = 3.0
_ASK_AGAIN_S = 0.05


class Endings:
    """Questions to the zygote of one function, and its answers. Thread-safe.

    Args:
        connection: socket to the function's zygote.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._zygote = connection
        self._changed = threading.Condition()
        self._said: dict[str, bytes] = {}
        self._asked = 0
        self._closed = False

    def ask(self, name: str) -> tuple[int, int] | None:
        """Ask how a call's process ended.

        Args:
            name: name of the process.

        Returns:
            Its wait status and peak memory in bytes; None if the zygote does not answer in time.
        """
        deadline = time.monotonic() + ENDING_TIMEOUT_S
        with self._changed:
            while not self._closed and time.monotonic() < deadline:
                self._asked += 1  # before sending: the loop's thread may receive the answer before this thread goes on
                try:
                    self._zygote.send(zygote.STATUS + name.encode(), socket.MSG_NOSIGNAL)
                except OSError:
                    self._asked -= 1
                # Answers to other threads also wake this one, and must not make it ask again.
                if self._changed.wait_for(lambda: self._closed or name in self._said, _ASK_AGAIN_S):
                    said = self._said.pop(name, None)
                    return None if said is None else zygote.ENDING.unpack(said)
        return None

    @property
    def awaited(self) -> bool:
        """Whether an answer is outstanding. An answer that nobody asked for is a protocol violation."""
        return self._asked > 0

    def hear(self, content: bytes, *, known: bool) -> None:
        """Take an answer from the zygote.

        Args:
            content: of the zygote's message.
            known: whether the process is in a call; otherwise the answer is dropped.
        """
        with self._changed:
            self._asked -= 1
            if known and len(content) == init.NAME_CHARS + zygote.ENDING.size:
                self._said[name_of(content)] = content[init.NAME_CHARS :]
            self._changed.notify_all()

    def forget(self, name: str) -> None:
        """Drop the answer for a process that nobody will ask about any more."""
        with self._changed:
            self._said.pop(name, None)

    def close(self) -> None:
        """Wake everyone who waits: no more answers will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def name_of(content: bytes) -> str:
    """Return the name of the process that a zygote's message is about."""
    return content[: init.NAME_CHARS].decode(errors="replace")

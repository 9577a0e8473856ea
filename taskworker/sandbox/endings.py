"""How processes of calls ended, as their zygote says when it is asked."""

from __future__ import annotations

import socket
import threading
import time

from taskworker.sandbox.inside import init, zygote

ENDING_TIMEOUT_S = 3.0
_ASK_AGAIN_S = 0.05


class Endings:
    """Of one function. Thread-safe.

    Args:
        connection: to its zygote.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._zygote = connection
        self._changed = threading.Condition()
        self._said: dict[str, bytes] = {}
        self._asked = 0
        self._closed = False

    def ask(self, name: str) -> tuple[int, int] | None:
        """Ask how a call's process ended: its wait status and peak bytes; None if the zygote does not say."""
        deadline = time.monotonic() + ENDING_TIMEOUT_S
        with self._changed:
            while not self._closed and time.monotonic() < deadline:
                self._asked += 1  # first: the loop's thread may have the answer before this one goes on
                try:
                    self._zygote.send(zygote.STATUS + name.encode(), socket.MSG_NOSIGNAL)
                except OSError:
                    self._asked -= 1
                # What others are told wakes this one up, too, which must not ask again for that.
                if self._changed.wait_for(lambda: self._closed or name in self._said, _ASK_AGAIN_S):
                    said = self._said.pop(name, None)
                    return None if said is None else zygote.ENDING.unpack(said)
        return None

    @property
    def awaited(self) -> bool:
        """Whether somebody asked and has no answer: an answer that nobody asked for is a violation."""
        return self._asked > 0

    def hear(self, content: bytes, *, known: bool) -> None:
        """Take an answer; it is kept if the process is ``known`` to be in a call."""
        with self._changed:
            self._asked -= 1
            if known and len(content) == init.NAME_CHARS + zygote.ENDING.size:
                self._said[name_of(content)] = content[init.NAME_CHARS :]
            self._changed.notify_all()

    def forget(self, name: str) -> None:
        """Nobody will ask for this process any more."""
        with self._changed:
            self._said.pop(name, None)

    def close(self) -> None:
        """Nothing more is said."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def name_of(content: bytes) -> str:
    """The name of the process that a zygote's message is about."""
    return content[: init.NAME_CHARS].decode(errors="replace")

"""Pipes by which a server's connections give bodies to other threads, and get contents from them."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

PIECE_BYTES = 256 * 1024
"""A thread is woken when so much has come, or all."""
_FULL = 1024 * 1024
"""Nobody puts more into a pipe that has so much."""
PIECE_S = 60.0
"""How long a piece of a body may take, or of a reply: a peer that is slower than 4 KiB/s would hold a thread."""
DIVERT = "taskworker.divert"
"""The extension of ASGI by which the server puts a body into a pipe."""


class PeerGone(Exception):
    """The other side closed the connection, or gave up."""


class Pipe:
    """Pieces of bytes on their way from one thread to another; bounded if whoever fills it heeds what :meth:`put` says.

    Args:
        drained: called by the thread that takes, when a pipe that was full has room.
    """

    def __init__(self, drained: Callable[[], None] = lambda: None) -> None:
        self._drained = drained
        self._changed = threading.Condition()
        self._pieces: deque[bytes | memoryview] = deque()
        self._size = 0
        self._was_full = self._ended = self._broken = False

    def put(self, piece: bytes | memoryview) -> bool:
        """Add a piece; return whether to wait with the next one until ``drained`` is called."""
        with self._changed:
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size >= PIECE_BYTES:
                self._changed.notify_all()
            self._was_full = self._size >= _FULL
            return self._was_full

    def end(self) -> None:
        """Add nothing any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def fail(self) -> None:
        """Tell whoever takes, or puts, that the other side is gone."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()

    def wait_for_room(self, timeout_s: float) -> bool:
        """Return when it is not full; False if it still is, or is broken."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._size < _FULL, timeout_s)
            return not self._broken and self._size < _FULL

    def take(self, timeout_s: float, least: int = PIECE_BYTES) -> list[bytes | memoryview] | None:
        """What has come, at least ``least`` bytes unless all has; empty at the end; None if it took too long.

        Raises:
            PeerGone: the pipe is broken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._ended or self._size >= least, timeout_s)
            if self._broken:
                raise PeerGone
            if not self._ended and self._size < least:
                return None
            pieces, self._size = [*self._pieces], 0
            self._pieces.clear()
            was_full, self._was_full = self._was_full, False
            self._changed.notify_all()
        if was_full:
            self._drained()
        return pieces


class Divert(Protocol):
    """Leads the body of a request, and the content of its reply, past ASGI; part of the server."""

    def begin(self, pipe: Pipe) -> None:
        """Put what has come, and all that follows, into the pipe."""

    def go_on(self) -> None:
        """Read on, as the pipe has room."""

    def end(self) -> None:
        """Let the rest of the body be received as ASGI has it. All that was read from the connection was counted."""

    def straight_body(self, failed: Callable[[], None]) -> tuple[bytes, int, socket.socket] | None:
        """What has come of the body, how many bytes are to come, and the connection, for a thread that reads them.

        It does not block, and is the caller's to close. The server reads nothing from it until :meth:`end`. None: the
        body can only be read as the server has it, as its length is not known or small, or the connection is encrypted.

        Args:
            failed: called, by the event loop, if the rest cannot be read there any more.
        """

    def took(self, count: int) -> None:
        """Count what was read there."""

    def straight(self) -> socket.socket | None:
        """The connection, for another thread that writes the content of a reply whose head was sent.

        It does not block, is the caller's to close, and nobody else writes to it until :meth:`wrote`. None: content can
        only be sent as ASGI has it, as the connection is encrypted or the head is not on its way yet.
        """

    def wrote(self, count: int) -> None:
        """Count what was written there."""

    def abort(self) -> None:
        """Close the connection, and drop what was not read."""

"""Byte streams between two processes: Unix sockets and TCP. Those with TLS are in :mod:`.secure`.

The sockets block. Calls that must not wait pass ``MSG_DONTWAIT``; waiting ones end after :data:`WAIT_S`, by the
kernel's own time limits, which costs no further system call.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import math
import os
import socket
import struct
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from storage.errors import InvalidArgument
from storage.limits import BytesLike
from taskworker.transport.wire.backlog import SendBacklog
from taskworker.transport.wire.connecting import connect_in_time
from taskworker.transport.wire.tcp_info import queued_s, retransmission_s, shortest_round_trip_s

WAIT_S = 0.1
"""How long a call that may wait does so, in seconds."""
_IOV_MAX = 64
# As plain numbers: to combine two of the socket module's flags takes as long as to pack a header.
_NO_SIGNAL, _NO_WAIT, _MORE = int(socket.MSG_NOSIGNAL), int(socket.MSG_DONTWAIT), int(socket.MSG_MORE)
_BACKLOG = 512


def _timeval(seconds: float) -> bytes:
    microseconds = max(1, int(seconds * 1_000_000))  # 0 would mean for ever
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))


_TIMEVAL = _timeval(WAIT_S)


class Stream(Protocol):
    """A connected stream of bytes. Each direction is used by one thread at a time."""

    def receive(self, buffers: Sequence[memoryview], *, wait: bool) -> int | None:
        """Receive into the buffers, in order, as much as has arrived.

        Args:
            buffers: at least one, none of them empty.
            wait: wait for at most :data:`WAIT_S` if nothing has arrived.

        Returns:
            The number of bytes; 0 at the end of the stream; None if nothing has arrived.

        Raises:
            OSError: the connection failed.
        """

    def send(self, buffers: Sequence[BytesLike], *, wait: bool, more: bool = False) -> int:
        """Send from the buffers, in order, as much as fits.

        Args:
            buffers: what to send; the caller may reuse what was sent.
            wait: wait for at most :data:`WAIT_S` if nothing fits.
            more: further bytes follow at once.

        Returns:
            The number of bytes.

        Raises:
            OSError: the connection failed.
        """

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        """Like :meth:`send` with ``wait``, from a file.

        Raises:
            EOFError: the file ends before ``offset``.
            OSError: the connection failed, or the file cannot be read.
        """

    def unsent(self) -> int:
        """Return the number of bytes that were sent but not taken by the other end's system."""

    def retransmission_s(self) -> float:
        """Return the seconds after which the system first sends again what was lost; 0 where nothing gets lost."""

    def shortest_round_trip_s(self) -> float:
        """Return the shortest round trip of the last minutes, in seconds; 0 on this machine, and if it is not known.

        Raises:
            OSError: the stream was closed.
        """

    @property
    def has_more(self) -> bool:
        """Whether bytes have arrived that waiting for the descriptor does not show."""

    def fileno(self) -> int:
        """Return the descriptor, for waiting."""

    def shutdown(self) -> None:
        """End both directions, so that waiting calls return. May be called by any thread."""

    def close(self) -> None:
        """Close the descriptor. Nobody may be using the stream."""


Dial = Callable[[str, float], Stream]
"""(address, seconds) → a connected stream; raises OSError."""

Secure = Callable[[socket.socket], Stream]
"""Makes an accepted socket a stream, which then owns it, without waiting for the other end; raises OSError."""


class SocketStream:
    """A :class:`Stream` over a socket, which it owns."""

    __slots__ = ("_backlog", "_socket")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._backlog: SendBacklog | None = None
        connected.settimeout(None)
        for limit in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, limit, _TIMEVAL)
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._backlog = SendBacklog(self.unsent, self._queued_s, self._limit, time.monotonic)

    def receive(self, buffers: Sequence[memoryview], *, wait: bool) -> int | None:
        """See :class:`Stream`."""
        flags = 0 if wait else _NO_WAIT
        try:
            if len(buffers) == 1:
                return self._socket.recv_into(buffers[0], 0, flags)
            return self._socket.recvmsg_into(buffers[:_IOV_MAX], 0, flags)[0]
        except BlockingIOError:
            return None

    def send(self, buffers: Sequence[BytesLike], *, wait: bool, more: bool = False) -> int:
        """See :class:`Stream`."""
        flags = _NO_SIGNAL | (0 if wait else _NO_WAIT) | (_MORE if more else 0)
        try:
            if len(buffers) == 1:
                count = self._socket.send(buffers[0], flags)
            else:
                count = self._socket.sendmsg(buffers[:_IOV_MAX], (), flags)
        except BlockingIOError:
            count = 0
        if self._backlog is not None:
            self._backlog.note(count)
        return count

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        """See :class:`Stream`."""
        try:
            sent = os.sendfile(self._socket.fileno(), descriptor, offset, count)
        except BlockingIOError:
            return 0
        if not sent:
            raise EOFError
        if self._backlog is not None:
            self._backlog.note(sent)
        return sent

    def _limit(self, count: int) -> None:
        # The kernel doubles the number, as it counts its own structures as well.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, count)

    def _queued_s(self) -> float:
        return queued_s(self._socket)

    def unsent(self) -> int:
        """See :class:`Stream`."""
        count = array.array("i", [0])
        fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, count)
        return count[0]

    def retransmission_s(self) -> float:
        """See :class:`Stream`."""
        return retransmission_s(self._socket)

    def shortest_round_trip_s(self) -> float:
        """See :class:`Stream`."""
        return shortest_round_trip_s(self._socket)

    @property
    def has_more(self) -> bool:
        """See :class:`Stream`."""
        return False

    def fileno(self) -> int:
        """See :class:`Stream`."""
        return self._socket.fileno()

    def shutdown(self) -> None:
        """See :class:`Stream`."""
        with contextlib.suppress(OSError):  # the other end may have closed it
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See :class:`Stream`."""
        self._socket.close()


def dial(address: str, within_s: float) -> Stream:
    """Connect to ``host:port``, ``[ipv6]:port`` or ``unix:path``.

    Raises:
        InvalidArgument: the address is malformed.
        OSError: nobody answers there within ``within_s`` seconds.
    """
    return SocketStream(dial_socket(address, within_s))


def dial_socket(address: str, within_s: float) -> socket.socket:
    """Connect like :func:`dial`, and return the socket."""
    path, host, port = split_address(address)
    if path is None:
        try:
            return connect_in_time(host, port, within_s)
        except UnicodeError:
            raise InvalidArgument(f"address {address[:100]!r} has no host that there could be") from None
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # If the server's queue is full, this waits; with a time limit of Python's, it would fail at once.
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(within_s))
        connecting.connect(str(path))
    except BaseException:
        connecting.close()
        raise
    return connecting


def listen(address: str) -> socket.socket:
    """Listen on ``host:port`` (port 0: any free one), ``[ipv6]:port`` or ``unix:path``, which only its owner may use.

    The caller checks that the address is one to listen on. The socket does not block.

    Raises:
        InvalidArgument: the address is malformed.
        OSError: the address is taken.
    """
    path, host, port = split_address(address)
    if path is not None:
        return _listen_at(path)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listening.setblocking(False)
    return listening


def _listen_at(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if not path.is_symlink() and path.is_socket() and not _answers(path):
            path.unlink()  # left by a process that was killed
        os.fchmod(listening.fileno(), 0o600)  # the file gets these rights, so it is never open to others
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def split_address(address: str) -> tuple[Path | None, str, int]:
    """Split an address into the path of a socket file, or a host and a port.

    Raises:
        InvalidArgument: it is malformed.
    """
    if address.startswith("unix:") and len(address) > len("unix:"):
        return Path(address.removeprefix("unix:").removeprefix("//")), "", 0
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"address {address!r} is not host:port, [ipv6]:port or unix:/path")
    return None, host, int(port)


def milliseconds(within_s: float | None) -> int:
    """A time limit as it travels: at least one millisecond; 0 if there is none."""
    if within_s is None or within_s == math.inf:
        return 0
    return max(1, min(math.ceil(within_s * 1000), 0xFFFFFFFF))

"""Streams with TLS. They do not block: a thread that may wait does so without holding the stream's lock.

OpenSSL's objects must not be used by two threads at once, while streams have one thread for each direction. So a lock
is held during each call, which encrypts or decrypts at most :data:`_TOGETHER_BYTES`.

Copies of a byte: decrypted straight into the receiver's memory; encrypted from the sender's, except that what belongs
to one TLS record but lies in several buffers is joined first. System calls for each record of 16 KiB: one at the
sender, two at the receiver, as OpenSSL reads a record's header and its body apart. Many records are sent by one call
of OpenSSL, for which the interpreter's lock is let go once: on 2 cores, 16 at a time take a sixth less processor time
to send than one at a time, and 4 at a time hardly less. While a socket is full, a copy is kept of what OpenSSL has
begun to send; that is many records only where the other end takes them fast. Of records received, each is a call of
its own. Memory BIOs, with one system call for many records, were measured, and do not pay: what they save, the two
further copies cost. Files cannot be sent without passing through memory.

A small message is one record. Its receiver does not look for another one behind it before it waits for the descriptor:
to be told by OpenSSL that there is none costs as much as to receive a record.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import ssl
import termios
import threading
import time
from collections.abc import Callable, Sequence

from storage.errors import InvalidArgument
from storage.limits import KIB, BytesLike
from taskworker.transport.wire.backlog import SendBacklog
from taskworker.transport.wire.streams import WAIT_S, Stream, dial_socket
from taskworker.transport.wire.tcp_info import queued_s, retransmission_s, shortest_round_trip_s

_RECORD_BYTES = 16 * KIB  # the most that one TLS record holds
_TOGETHER_BYTES = 256 * KIB

Authorize = Callable[[bytes], object]
"""(certificate of the other end, DER) → who it is; raises OSError if this process has nothing to do with it."""


class SecureStream:
    """A :class:`Stream` with TLS over a socket, which it owns.

    Args:
        connected: the socket.
        context: keys, and whom to trust.
        server_name: for a client, the DNS name that the server's certificate must have; None: this end is the server.
        authorize: judges the other end's certificate once it was verified.
        clock_s: monotonic seconds.

    Attributes:
        peer: who is at the other end, as ``authorize`` says; None before the handshake is complete, and at a server
            that asks for no certificates.
    """

    __slots__ = (
        "_ahead",
        "_authorize",
        "_backlog",
        "_clock_s",
        "_drained",
        "_lock",
        "_owed",
        "_piece_bytes",
        "_ready",
        "_tls",
        "peer",
    )

    def __init__(
        self,
        connected: socket.socket,
        context: ssl.SSLContext,
        server_name: str | None,
        authorize: Authorize,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        connected.setblocking(False)
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = context.wrap_socket(
            connected,
            server_side=server_name is None,
            server_hostname=server_name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=True,  # frames have lengths of their own
        )
        self._backlog: SendBacklog | None = None
        if connected.family != socket.AF_UNIX:
            self._backlog = SendBacklog(self.unsent, self._queued_s, self._limit, clock_s)
        self._authorize = authorize
        self._clock_s = clock_s
        self.peer: object = None
        self._lock = threading.Lock()
        self._ready = False
        self._owed = b""  # what OpenSSL has begun to send, and must be given again
        self._ahead = 0  # bytes that were sent, but not said to be taken: the caller gives them again
        self._piece_bytes = _RECORD_BYTES
        self._drained = False  # what was received last was the end of what the other end sent together

    def shake_hands(self, within_s: float) -> None:
        """Complete the handshake, and wait for the other end.

        Raises:
            OSError: it failed, or took longer than ``within_s`` seconds.
        """
        until_s = self._clock_s() + within_s
        while True:
            with self._lock:
                if self._is_ready():
                    return
            left_s = until_s - self._clock_s()
            if left_s <= 0 or not self._await(select.POLLIN, left_s):
                raise TimeoutError("the other end did not answer during the TLS handshake")

    def _is_ready(self) -> bool:
        """Go on with the handshake; return whether it is complete. The caller holds the lock."""
        if self._ready:
            return True
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is not None:
            self.peer = self._authorize(certificate)
        elif self._tls.context.verify_mode is not ssl.CERT_NONE:
            raise ConnectionError("the other end shows no certificate")
        self._ready = True
        return True

    def receive(self, buffers: Sequence[memoryview], *, wait: bool) -> int | None:
        """See :class:`Stream`."""
        count = None
        if self._drained:
            self._drained = False
        else:
            with self._lock:
                count = self._receive(buffers)
        if count is None and wait and self._await(select.POLLIN):
            with self._lock:
                count = self._receive(buffers)
        return count

    def _receive(self, buffers: Sequence[memoryview]) -> int | None:
        received = 0
        try:
            if not self._is_ready():
                return None
            for buffer in buffers:
                at = 0
                while at < len(buffer):
                    count = self._tls.recv_into(buffer[at:])
                    if not count:
                        return received
                    at += count
                    received += count
                    if received >= _TOGETHER_BYTES:
                        return received
                    if count < _RECORD_BYTES and at < len(buffer) and not self._tls.pending():
                        self._drained = True
                        return received
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return received or None
        return received

    def send(self, buffers: Sequence[BytesLike], *, wait: bool, more: bool = False) -> int:
        """See :class:`Stream`. What was not taken must be given again, before anything else."""
        total = sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in buffers)
        sent = self._send_all(buffers, total)
        if not sent and wait and self._await(select.POLLOUT):
            sent = self._send_all(buffers, total)
        if self._backlog is not None:
            self._backlog.note(sent)
        return sent

    def _queued_s(self) -> float:
        return queued_s(self._tls)

    def _limit(self, count: int) -> None:
        self._tls.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, count)

    def _send_all(self, buffers: Sequence[BytesLike], total: int) -> int:
        records = _Records(buffers)
        while records.taken < total:
            before = records.taken
            with self._lock:
                if not self._is_ready():
                    break
                self._send_some(records)
            if records.taken - before < min(_TOGETHER_BYTES, total - before):
                break
        return records.taken

    def _send_some(self, records: _Records) -> None:
        """Send records, up to :data:`_TOGETHER_BYTES` or one piece more. The caller holds the lock."""
        until = records.taken + _TOGETHER_BYTES
        try:
            if self._owed:
                self._tls.send(self._owed)
                self._ahead, self._owed = self._ahead + len(self._owed), b""
            self._ahead -= records.skip(self._ahead)
            while records.taken < until and len(piece := records.next(self._piece_bytes)):
                try:
                    self._tls.send(piece)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    # OpenSSL may have sent some of its records, and does not tell how many.
                    self._owed, self._piece_bytes = bytes(piece), _RECORD_BYTES
                    return
                records.skip(len(piece))
                if len(piece) >= self._piece_bytes:
                    self._piece_bytes = min(2 * self._piece_bytes, _TOGETHER_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        """See :class:`Stream`."""
        piece = os.pread(descriptor, min(count, _TOGETHER_BYTES), offset)
        if not piece:
            raise EOFError
        return self.send([piece], wait=True)

    def unsent(self) -> int:
        """See :class:`Stream`."""
        count = array.array("i", [0])
        fcntl.ioctl(self._tls.fileno(), termios.TIOCOUTQ, count)
        return count[0] + len(self._owed)

    def retransmission_s(self) -> float:
        """See :class:`Stream`."""
        return retransmission_s(self._tls)

    def shortest_round_trip_s(self) -> float:
        """See :class:`Stream`."""
        return shortest_round_trip_s(self._tls)

    @property
    def has_more(self) -> bool:
        """See :class:`Stream`."""
        return self._ready and self._tls.pending() > 0

    def fileno(self) -> int:
        """See :class:`Stream`."""
        return self._tls.fileno()

    def shutdown(self) -> None:
        """See :class:`Stream`."""
        try:
            # Not SSLSocket.shutdown, which would take the TLS object away from threads that are using it.
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)
        except OSError:
            return  # the other end may have closed it

    def close(self) -> None:
        """See :class:`Stream`."""
        with self._lock:
            self._tls.close()

    def _await(self, event: int, within_s: float = WAIT_S) -> bool:
        poll = select.poll()
        poll.register(self._tls.fileno(), event)
        return bool(poll.poll(within_s * 1000))


class _Records:
    """Cuts buffers into pieces of whole TLS records, and counts what was taken."""

    def __init__(self, buffers: Sequence[BytesLike]) -> None:
        self._left = [view for part in buffers if (view := memoryview(part).cast("B"))]
        self._left.reverse()
        self.taken = 0

    def next(self, bytes_max: int) -> BytesLike:
        """Return the next piece, of at most ``bytes_max``, a multiple of a record's size; empty at the end."""
        if not self._left:
            return b""
        first = self._left[-1]
        if len(self._left) == 1:
            return first[:bytes_max]
        if len(first) >= _RECORD_BYTES:
            return first[: min(len(first) // _RECORD_BYTES * _RECORD_BYTES, bytes_max)]
        parts, length = [], 0
        for view in reversed(self._left):
            part = view[: _RECORD_BYTES - length]
            parts.append(part)
            length += len(part)
            if length == _RECORD_BYTES:
                break
        return b"".join(parts)

    def skip(self, count: int) -> int:
        """Note that so many bytes were taken, or as many as there are; return how many that is."""
        left = count
        while left and self._left:
            first = self._left.pop()
            if left < len(first):
                self._left.append(first[left:])
                left = 0
            else:
                left -= len(first)
        self.taken += count - left
        return count - left


def accept_secure(accepted: socket.socket, context: ssl.SSLContext, authorize: Authorize) -> Stream:
    """Make an accepted socket a stream. The handshake takes place when the stream is first received from.

    Raises:
        OSError: the other end has gone away.
    """
    return SecureStream(accepted, context, None, authorize)


def dial_secure(
    address: str,
    within_s: float,
    context: ssl.SSLContext,
    server_name: str,
    authorize: Authorize,
    clock_s: Callable[[], float] = time.monotonic,
) -> Stream:
    """Connect like :func:`taskworker.transport.wire.streams.dial`, with TLS.

    Raises:
        InvalidArgument: the address is malformed, or no certificate can have the name.
        OSError: nobody answers there within ``within_s`` seconds, or not who was expected.
    """
    _check_name(server_name)
    until_s = clock_s() + within_s
    connected = dial_socket(address, within_s)
    try:
        stream = SecureStream(connected, context, server_name, authorize, clock_s)
    except BaseException:
        connected.close()
        raise
    try:
        stream.shake_hands(until_s - clock_s())
    except BaseException:
        stream.close()
        raise
    return stream


def _check_name(name: str) -> None:
    """Refuse what Python's TLS takes for a programmer's error, and then leaves a socket open."""
    try:
        is_one = bool(name.encode("idna")) and not name.startswith(".")
    except UnicodeError:
        is_one = False
    if not is_one:
        raise InvalidArgument(f"{name[:100]!r} cannot be the name in a certificate")

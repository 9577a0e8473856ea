"""The socket that a gateway listens at: one that it opens, or that systemd has opened for it."""

from __future__ import annotations

import os
import socket

from storage.errors import InvalidArgument
from taskworker.errors import cannot_listen

SYSTEMD = "systemd"
"""In place of an address: the socket is one of systemd, which listens before the gateway runs and while it restarts."""

_FIRST = 3  # sd_listen_fds(3): passed descriptors begin here
_BACKLOG = 1024


def listening(listen: str) -> socket.socket:
    """A socket that listens.

    Args:
        listen: ``HOST:PORT``; port 0: any free one. Or :data:`SYSTEMD`.

    Raises:
        InvalidArgument: the address is malformed, or systemd has not passed one socket for it.
        StorageUnavailable: it cannot be listened at.
    """
    if listen == SYSTEMD:
        return _passed()
    host, _, port = listen.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"{listen!r} is no address to listen at; give HOST:PORT, such as 127.0.0.1:9000")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        return socket.create_server((bare, int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise cannot_listen(listen, error) from None


def address_of(listener: socket.socket) -> str:
    """``HOST:PORT`` that a socket listens at."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _passed() -> socket.socket:
    """The socket that systemd has passed to this process; see sd_listen_fds(3)."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or not int(count):
        raise InvalidArgument("systemd has passed no socket; start the gateway by a .socket unit, or give HOST:PORT")
    if int(count) != 1:
        raise InvalidArgument(f"systemd has passed {count} sockets, and one is used; give its unit one ListenStream=")
    try:
        listener = socket.socket(fileno=_FIRST)
    except OSError as error:
        raise InvalidArgument(f"what systemd has passed is no socket: {error}") from None
    is_of_tcp = listener.family in (socket.AF_INET, socket.AF_INET6) and listener.type == socket.SOCK_STREAM
    if not is_of_tcp or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise InvalidArgument(
            "systemd has passed a socket that does not listen for TCP; use ListenStream= and Accept=no"
        )
    listener.set_inheritable(False)
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # they are not about processes that this one starts
        os.environ.pop(name, None)
    return listener

"""Connects TCP sockets within a time limit, which is for looking up the name and for all of its addresses together."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple


class _Place(NamedTuple):
    """An address to connect to, as sockets take it."""

    family: int
    kind: int
    protocol: int
    address: Any


def connect_in_time(
    host: str, port: int, within_s: float, clock_s: Callable[[], float] = time.monotonic
) -> socket.socket:
    """Connect to the first address of a host that answers. The socket has a time limit, which the caller resets.

    Each address gets an equal part of the time that is left.

    Raises:
        UnicodeError: the host cannot be a name.
        OSError: nobody answers there within ``within_s`` seconds.
    """
    until_s = clock_s() + within_s
    places = _places_in_time(host, port, within_s)
    failure: OSError = OSError(f"{host} has no address")
    for at, place in enumerate(places):
        left_s = until_s - clock_s()
        if left_s <= 0:
            raise TimeoutError(f"no address of {host} answered in time")
        try:
            return _connected_to(place, left_s / (len(places) - at))
        except OSError as error:
            failure = error
    raise failure


def _connected_to(place: _Place, within_s: float) -> socket.socket:
    connecting = socket.socket(place.family, place.kind, place.protocol)
    try:
        connecting.settimeout(within_s)
        connecting.connect(place.address)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _places_in_time(host: str, port: int, within_s: float) -> list[_Place]:
    """The addresses of a host. The system's resolver has no time limit of ours, so a name is looked up in a thread."""
    with contextlib.suppress(socket.gaierror):
        return _places(host, port, socket.AI_NUMERICHOST)
    found: Future[list[_Place]] = Future()

    def look_up() -> None:
        try:
            found.set_result(_places(host, port))
        except BaseException as error:
            found.set_exception(error)

    try:
        threading.Thread(target=look_up, name="look-up", daemon=True).start()
    except RuntimeError as error:  # the machine has no thread for the moment
        raise OSError(f"{host} cannot be looked up now: {error}") from None
    try:
        return found.result(within_s)
    except TimeoutError:
        raise TimeoutError(f"the name {host} could not be looked up in time") from None


def _places(host: str, port: int, flags: int = 0) -> list[_Place]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [_Place(family, kind, protocol, address) for family, kind, protocol, _, address in found]

"""Connecting to names: looking them up, and all of their addresses, have one time limit together."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import pytest

from taskworker.transport.wire.streams import dial_socket

WAIT_S = 30.0
Info = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]


def info(listening: socket.socket) -> Info:
    return socket.AF_INET, socket.SOCK_STREAM, 0, "", listening.getsockname()


@pytest.fixture
def silent() -> Iterator[Info]:
    """Where the system answers nobody, as too many wait there already."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield info(listening)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], list[Info]]], None]:
    """Has the system find these addresses for names."""
    found_by_system = socket.getaddrinfo

    def name(found: Callable[[], list[Info]]) -> None:
        def look_up(host: str, *arguments: Any, **keywords: Any) -> Any:
            return (
                found()
                if host == "name" and not keywords.get("flags")
                else found_by_system(host, *arguments, **keywords)
            )

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return name


def in_time(work: Callable[[], socket.socket]) -> socket.socket:
    outcome: Future[socket.socket] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(WAIT_S)
    except TimeoutError:
        assert outcome.done(), "it has not ended"
        raise


Named = Callable[[Callable[[], list[Info]]], None]


def test_all_addresses_of_a_name_have_one_time_limit(named: Named, silent: Info) -> None:
    named(lambda: [silent] * 500)
    with pytest.raises(TimeoutError):
        in_time(lambda: dial_socket("name:1", 0.3))


def test_an_address_that_does_not_answer_leaves_time_for_the_next(named: Named, silent: Info) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        named(lambda: [silent, info(listening)])
        with in_time(lambda: dial_socket("name:1", 2.0)) as connected:
            assert connected.getpeername() == listening.getsockname()


def test_a_name_that_cannot_be_looked_up_in_time_is_out_of_reach(named: Named) -> None:
    ends = threading.Event()

    def look_up() -> list[Info]:
        ends.wait()
        return []

    named(look_up)
    try:
        with pytest.raises(TimeoutError):
            in_time(lambda: dial_socket("name:1", 0.1))
    finally:
        ends.set()

"""Whatever callers do to a server, it closes their connections, keeps its memory, and answers others in time."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskworker.transport.wire.answering import AnsweringConnection
from taskworker.transport.wire.answers import OneAnswer
from taskworker.transport.wire.body_memory import BodyMemory
from taskworker.transport.wire.budget import Budget
from taskworker.transport.wire.connection import Connection
from taskworker.transport.wire.framing import (
    BODY_BYTES_MAX,
    LAST,
    WELCOME_BYTES,
    Header,
    Kind,
    pack_greeting,
    pack_header,
    pack_welcome,
)
from taskworker.transport.wire.poller import SHARED
from taskworker.transport.wire.server import WireServer
from taskworker.transport.wire.serving import Resources
from taskworker.transport.wire.streams import dial
from tests.transport.echo import METHODS, NUMBER, Do, describe, echo_server
from tests.transport.fuzz_targets import Alone, Later
from tests.transport.memory_stream import MemoryStream
from tests.transport.peers import Peer, call, caller, connect

MIB = 1 << 20
PATIENCE_S = 5.0
"""A worker that takes longer to answer counts as away."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = echo_server()
    yield server.start("127.0.0.1:0")
    server.stop(0.0)


class Process:
    """A server in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.transport.echo", f"unix:{directory}/s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().decode().strip()
        self._observed = psutil.Process(self._process.pid)

    @property
    def resident(self) -> int:
        """Bytes of memory in use."""
        return int(self._observed.memory_info().rss)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    started = Process(tmp_path)
    yield started
    started.end()


def ask(address: str, size: int = 1000, patience_s: float = PATIENCE_S) -> bool:
    """Whether a well-behaved caller gets its answers in time, on a new connection."""
    connection = Connection(dial(address, patience_s), 1, SHARED)
    try:
        for do in (Do.ECHO, Do.SLOW):
            answer = OneAnswer(SHARED.signal(), 1 << 20)
            connection.call(do, [bytes(size)], answer, patience_s, limit_s=patience_s)
            if answer.wait() != bytes(size):
                return False
        return True
    finally:
        connection.close()


# -- what is not allowed ---------------------------------------------------------------------------

WRONG = {
    "an answer": pack_header(Kind.ANSWER, 1, 0, flags=LAST),
    "a failure": pack_header(Kind.FAILURE, 1, 0),
    "kind 0": pack_header(0, 1, 0),  # type: ignore[arg-type]
    "kind 6": pack_header(6, 1, 0),  # type: ignore[arg-type]
    "call 0": call(0),
    "flags": pack_header(Kind.CALL, 1, 0, flags=2),
    "a body too large": pack_header(Kind.CALL, 1, BODY_BYTES_MAX + 1, method=1),
    "the largest length": pack_header(Kind.CALL, 1, 2**32 - 1, method=1),
    "cancel with a body": pack_header(Kind.CANCEL, 1, 5),
    "cancel with a method": pack_header(Kind.CANCEL, 1, 0, method=1),
    "more of none": pack_header(Kind.MORE, 1, 0, value=0),
    "more of too many": pack_header(Kind.MORE, 1, 0, value=1025),
    "a number used twice": call(7, NUMBER.pack(100), method=Do.COUNT) + call(7),
    "too many calls": b"".join(call(number, NUMBER.pack(100), method=Do.COUNT) for number in range(1, 600)),
    "garbage": b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n",
}


@pytest.mark.parametrize("raw", WRONG.values(), ids=WRONG)
def test_a_caller_that_breaks_the_protocol_is_cut_off(address: str, raw: bytes) -> None:
    with caller(address) as peer:
        peer.send(raw)
        assert peer.is_closed()
    assert ask(address)


@pytest.mark.parametrize("raw", [bytes(8), b"GET / HTT", pack_greeting(1)[:4] + b"\3\2\0\0"], ids=["0", "HTTP", "3-2"])
def test_a_caller_with_another_greeting_is_cut_off(address: str, raw: bytes) -> None:
    peer = connect(address)
    peer.send(raw)
    assert peer.take(1) == b""
    peer.close()


def test_a_caller_of_other_versions_is_told_so_and_cut_off(address: str) -> None:
    peer = connect(address)
    peer.send(pack_greeting(1, 2, 9))
    assert peer.take(WELCOME_BYTES)[:5] == pack_welcome(0, 0, 0)[:5]
    assert peer.is_closed()
    peer.close()


def test_what_may_have_crossed_an_answer_is_ignored(address: str) -> None:
    with caller(address) as peer:
        peer.send(pack_header(Kind.CANCEL, 5, 0), pack_header(Kind.MORE, 6, 0, value=1), call(7, b"abc"))
        assert peer.frame() == (Header(3, 7, Kind.ANSWER, 0, LAST, 0), b"abc")


@given(raw=st.binary(max_size=200), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_end_one_connection_at_most(address: str, raw: bytes, seed: int) -> None:
    rng = Random(seed)
    with caller(address) as peer:
        good = call(1, b"good")
        peer.send(good[: rng.randint(0, len(good))] if seed % 2 else b"", raw)
        if seed % 3:
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.is_closed()
    with caller(address) as peer:
        peer.send(call(2, b"still there"))
        assert peer.frame() == (Header(11, 2, Kind.ANSWER, 0, LAST, 0), b"still there")


@pytest.mark.parametrize("stops_after", [0, 3, 8, 9, 24, 30, 100])
def test_a_caller_that_stops_anywhere_is_given_up_in_time(stops_after: int) -> None:
    ahead_s = [0.0]
    server = WireServer({}, lambda error: b"", clock_s=lambda: time.monotonic() + ahead_s[0])
    try:
        peer = connect(server.start("127.0.0.1:0"))
        peer.send((pack_greeting(1) + call(1, bytes(1000)))[:stops_after])
        time.sleep(1.2)  # until the server has looked at it once
        ahead_s[0] = 601.0 if stops_after == len(pack_greeting(1)) else 41.0
        assert peer.is_closed()
        peer.close()
    finally:
        server.stop(0.0)


def test_a_slow_caller_that_gets_on_is_not_given_up() -> None:
    """1 Mbit/s is slow, not dead: a large body takes longer than a peer may be silent."""
    ahead_s = [0.0]
    server = echo_server()
    server._clock_s = lambda: time.monotonic() + ahead_s[0]
    server._resources = server._resources._replace(clock_s=server._clock_s)
    try:
        with caller(server.start("127.0.0.1:0")) as peer:
            raw = call(1, bytes(4 * MIB))
            step = len(raw) // 3 + 1
            for at in range(0, len(raw), step):
                peer.send(raw[at : at + step])
                time.sleep(1.2)
                ahead_s[0] += 15.0
            found = peer.frame()
            assert found is not None
            assert found[1] == bytes(4 * MIB)
    finally:
        server.stop(0.0)


# -- crowds ----------------------------------------------------------------------------------------


def silent(_peer: Peer, stop: threading.Event) -> None:
    stop.wait()


def half_a_frame(peer: Peer, stop: threading.Event) -> None:
    peer.send(call(1, bytes(100_000))[:70_000])
    stop.wait()


def trickles(peer: Peer, stop: threading.Event) -> None:
    raw = call(1, bytes(10_000))
    for at in range(len(raw)):
        if stop.wait(0.03):
            return
        peer.send(raw[at : at + 1])


def trickles_calls(peer: Peer, stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        for byte in call(number):
            if stop.wait(0.03):
                return
            peer.send(bytes([byte]))


def never_reads(peer: Peer, stop: threading.Event) -> None:
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for number in range(1, 50):
        peer.send(call(number, NUMBER.pack(300_000), method=Do.LARGE))
    stop.wait()


def reads_byte_by_byte(peer: Peer, stop: threading.Event) -> None:
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.send(call(1, NUMBER.pack(300_000), method=Do.LARGE))
    while not stop.wait(0.02):
        peer.take(1)


def wants_no_more(peer: Peer, stop: threading.Event) -> None:
    for number in range(1, 20):
        peer.send(call(number, NUMBER.pack(1 << 30), method=Do.COUNT))
    stop.wait()


def wants_ever_more(peer: Peer, stop: threading.Event) -> None:
    peer.send(call(1, NUMBER.pack(1 << 30), method=Do.COUNT))
    while not stop.is_set():
        peer.send(pack_header(Kind.MORE, 1, 0, value=10))
        for _ in range(10):
            peer.frame()


def floods_calls(peer: Peer, stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        raw = b"".join(call(number + each, b"x" * 20, method=Do.SLOW) for each in range(1, 101))
        number += 100
        peer.send(raw)
        for _ in range(100):
            if peer.frame() is None:
                return


def floods_cancels(peer: Peer, stop: threading.Event) -> None:
    raw = pack_header(Kind.CANCEL, 1, 0) * 1000
    while not stop.is_set():
        peer.send(raw)


def leaves_and_returns(address: str, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(OSError):
            peer = connect(address)
            peer.send(pack_greeting(1), call(1, bytes(2000), method=Do.SLOW), call(2, bytes(2000))[:1000])
            peer.close()


@contextmanager
def crowd(address: str, behave: Callable[[Peer, threading.Event], None], count: int) -> Iterator[None]:
    """So many callers that behave like this, while the context lasts."""
    stop = threading.Event()
    with ThreadPoolExecutor(count) as threads, ExitStack() as peers:
        connected = [peers.enter_context(caller(address)) for _ in range(count)]
        for peer in connected:
            peer.socket.settimeout(None)
        running = [threads.submit(_behave, behave, peer, stop) for peer in connected]
        time.sleep(0.3)
        try:
            yield
        finally:
            stop.set()
            for peer in connected:
                with contextlib.suppress(OSError):
                    peer.socket.shutdown(socket.SHUT_RDWR)
            for each in running:
                each.result()


def _behave(behave: Callable[[Peer, threading.Event], None], peer: Peer, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        behave(peer, stop)


CROWDS = [
    *((silent, 100), (half_a_frame, 100), (trickles, 100), (trickles_calls, 100), (never_reads, 100)),
    *((reads_byte_by_byte, 100), (wants_no_more, 100), (wants_ever_more, 20), (floods_calls, 10), (floods_cancels, 4)),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("behave", "count"), CROWDS, ids=[behave.__name__ for behave, _ in CROWDS])
def test_others_are_answered_in_time(
    process: Process, behave: Callable[[Peer, threading.Event], None], count: int
) -> None:
    before = process.resident
    with crowd(process.address, behave, count):
        for _ in range(5):
            assert ask(process.address)
        assert ask(process.address, 300_000)
        grown = process.resident - before
        assert grown < 100 * MIB, f"{grown >> 20} MiB"
    assert ask(process.address)


@pytest.mark.timeout(120)
def test_callers_that_come_and_go_all_the_time(process: Process) -> None:
    before = process.resident
    stop = threading.Event()
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(leaves_and_returns, process.address, stop) for _ in range(4)]
        try:
            for _ in range(10):
                assert ask(process.address)
        finally:
            stop.set()
        for each in running:
            each.result()
    assert process.resident - before < 60 * MIB


@pytest.mark.timeout(120)
def test_large_bodies_that_do_not_come_keep_others_from_no_memory(process: Process) -> None:
    """Their senders are cut off, as others wait for the memory."""
    with crowd(process.address, _announces_a_large_body, 20):
        assert _echoes(process.address, 12 * MIB)
        assert process.resident < 200 * MIB


def _announces_a_large_body(peer: Peer, stop: threading.Event) -> None:
    peer.send(pack_header(Kind.CALL, 1, BODY_BYTES_MAX, method=1), bytes(1000))
    stop.wait()


def _echoes(address: str, size: int) -> bool:
    connection = Connection(dial(address, 10.0), 1, SHARED)
    try:
        answer = OneAnswer(SHARED.signal(), size)
        connection.call(Do.ECHO, [bytes(size)], answer, 30.0)
        return len(answer.wait()) == size
    finally:
        connection.close()


@pytest.mark.timeout(120)
def test_a_thousand_idle_connections(process: Process) -> None:
    with ExitStack() as peers:
        for _ in range(1000):
            peers.enter_context(caller(process.address))
        for _ in range(5):
            assert ask(process.address)
        assert process.resident <= 200 * MIB


@pytest.mark.timeout(120)
def test_more_connections_than_are_kept(process: Process) -> None:
    """Those that say nothing make room for others; a well-behaved caller that was cut off connects again."""
    with ExitStack() as peers:
        for _ in range(2400):
            peer = connect(process.address)
            peers.callback(peer.close)
        for _ in range(3):  # a busy machine takes a while for those before
            assert ask(process.address, patience_s=30.0)


# -- who is slow -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("arrived", "hogs"), [(2 * MIB, False), (100_000, True)])
def test_only_a_slow_sender_gives_up_its_memory_for_others(arrived: int, hogs: bool) -> None:
    now = [0.0]
    stream = MemoryStream(pack_greeting(1) + call(1, bytes(4 * MIB))[:arrived])
    threads = Later()
    resources = Resources(BodyMemory(1 << 30), Budget(1 << 30), threads, threads, lambda: now[0])
    connection = AnsweringConnection(stream, METHODS, describe, Alone(), resources)
    connection.run()
    assert not stream.incoming
    now[0] = 1.9
    assert connection.hogged(now[0]) == 0
    now[0] = 4.0
    assert connection.hogged(now[0]) == (4 * MIB if hogs else 0)

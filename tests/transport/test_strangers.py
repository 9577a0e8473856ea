"""Callers who show nothing that entitles them harm neither those who do nor other ports of the process."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.limits import KIB
from taskworker.hosts import host_of
from taskworker.transport.frames import TAKING_BYTES_MAX
from taskworker.transport.ticketed_reads import CLIENTS_LIMITS
from taskworker.transport.wire.answering import AnsweringConnection
from taskworker.transport.wire.framing import WELCOME_BYTES, Kind, pack_greeting
from taskworker.transport.wire.outgoing import Parts
from taskworker.transport.wire.server import WireServer
from taskworker.transport.wire.serving import Caller, Method, Style
from taskworker.transport.wire.strangers import StrangersLimits, to_drop
from tests.transport.echo import METHODS, Do, describe, echo_server
from tests.transport.peers import Peer, call, caller, connect

LIMITS = CLIENTS_LIMITS.strangers or StrangersLimits(0, 0, 0, 0.0)
# Waits for a line, connects from addresses of its own, sends something on each connection, prints a line, and stays
# connected until it is told to end.
FLOOD = """
import socket, sys
host, port, count, hosts, sent = sys.argv[1], *map(int, sys.argv[2:5]), bytes.fromhex(sys.argv[5])
sys.stdin.readline()
connected = []
for number in range(count):
    connecting = socket.socket()
    connecting.bind((f"127.0.0.{2 + number % hosts}", 0))
    try:
        connecting.connect((host, port))
        connecting.sendall(sent)
    except OSError:
        pass
    connected.append(connecting)
print("there", flush=True)
sys.stdin.read()
"""


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def clients_port(clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """A server with the limits of a port for clients."""
    server = WireServer(METHODS, describe, limits=CLIENTS_LIMITS, clock_s=clock)
    try:
        yield server.start("127.0.0.1:0")
    finally:
        server.stop(0.0)


@contextmanager
def flood(
    address: str, count: int, hosts: int = 1, before: Callable[[], object] = lambda: None, sent: bytes = b""
) -> Iterator[None]:
    """So many connections of other hosts, which send no more than this; before they are made, something happens."""
    host, _, port = address.rpartition(":")
    command = [sys.executable, "-c", FLOOD, host, port, str(count), str(hosts), sent.hex()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        before()
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"there\n"
        yield
    finally:
        process.communicate()


def answers(peer: Peer, number: int, method: Do = Do.ECHO) -> Kind:
    """The kind of the frame with which a call is answered."""
    peer.send(call(number, b"x", method=method))
    frame = peer.frame()
    assert frame is not None, "the connection was closed"
    return Kind(frame[0].kind)


def test_a_flood_from_one_host_ends_no_connection_of_another() -> None:
    with (
        clients_port() as address,
        contextlib.closing(connect(address)) as early,
        flood(address, CLIENTS_LIMITS.connections + 50),
        caller(address) as late,
    ):
        assert answers(late, 1) is Kind.ANSWER
        early.send(pack_greeting(1))
        assert len(early.take(WELCOME_BYTES)) == WELCOME_BYTES
        assert answers(early, 1) is Kind.ANSWER


def test_who_proves_nothing_in_time_is_closed_and_who_does_is_not() -> None:
    clock = Clock()
    with clients_port(clock) as address, caller(address) as proven, caller(address) as refused:
        assert answers(proven, 1) is Kind.ANSWER
        assert answers(refused, 1, Do.REFUSE) is Kind.FAILURE
        clock.now_s += LIMITS.proving_s - 1
        assert answers(proven, 2) is Kind.ANSWER
        assert answers(refused, 2, Do.REFUSE) is Kind.FAILURE
        clock.now_s += 2
        assert refused.is_closed()
        assert answers(proven, 3) is Kind.ANSWER


def test_who_proves_nothing_takes_no_memory_from_others() -> None:
    """However many begin to send large calls, and never end."""
    size = TAKING_BYTES_MAX
    large = call(2, bytes(size))
    with clients_port(Clock()) as address, caller(address) as proven, ExitStack() as stack:
        assert answers(proven, 1) is Kind.ANSWER
        strangers = [stack.enter_context(caller(address)) for _ in range(CLIENTS_LIMITS.bodies_bytes // size + 4)]
        for peer in strangers:
            peer.send(large[:1000])
        proven.send(large)
        frame = proven.frame()
        assert frame is not None
        assert len(frame[1]) == size


def test_some_descriptors_are_left_to_other_ports() -> None:
    """Whatever connects to the port for clients, members can connect to theirs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    members = echo_server()
    with clients_port() as address, ExitStack() as stack:
        members_address = members.start("127.0.0.1:0")
        stack.callback(members.stop, 0.0)
        proven = [stack.enter_context(caller(address)) for _ in range(8)]
        for peer in proven:
            assert answers(peer, 1) is Kind.ANSWER
        used = proven[-1].socket.fileno() + 10

        def allow_few() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (4 * used // 3, hard))

        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with flood(address, 8 * LIMITS.of_host, hosts=8, before=allow_few):
            for _ in range(used // 8):
                assert answers(stack.enter_context(caller(members_address)), 1) is Kind.ANSWER
            for peer in proven:
                assert answers(peer, 2) is Kind.ANSWER


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_who_waits_for_memory_is_closed_when_it_must_make_way() -> None:
    """Though nothing more arrives from it, and no memory is freed."""
    size = TAKING_BYTES_MAX
    beginning = call(1, bytes(size))[:1000]
    with clients_port(Clock()) as address, ExitStack() as stack:
        for _ in range(LIMITS.bodies_bytes // size):  # they have all memory that may be had
            stack.enter_context(caller(address)).send(beginning)
        before = descriptors()
        for _ in range(3):
            stack.enter_context(flood(address, LIMITS.of_host, sent=pack_greeting(1) + beginning))
            with caller(address):  # all those before it were accepted
                pass
        ends_s = time.monotonic() + 10.0
        while descriptors() - before > LIMITS.of_host + 20:
            assert time.monotonic() < ends_s, f"{descriptors() - before} descriptors are open"
            time.sleep(0.01)


def is_served(address: str) -> bool:
    """Whether a new caller's call is answered, and not its connection closed at once."""
    with contextlib.closing(connect(address)) as peer:
        peer.send(pack_greeting(1))
        return len(peer.take(WELCOME_BYTES)) == WELCOME_BYTES and answers(peer, 1) is Kind.ANSWER


def test_connections_that_are_being_closed_count() -> None:
    """However long no thread has time to close those that were ended in favour of others."""
    goes_on = threading.Event()

    def wait(_body: memoryview, _caller: Caller) -> Parts:
        goes_on.wait(60.0)
        return ()

    server = WireServer(
        {**METHODS, 99: Method("wait", Style.QUICK, wait)}, describe, limits=CLIENTS_LIMITS, clock_s=Clock()
    )
    with ExitStack() as stack:
        stack.callback(server.stop, 0.0)
        stack.callback(goes_on.set)
        address = server.start("127.0.0.1:0")
        for _ in range(CLIENTS_LIMITS.threads):
            stack.enter_context(caller(address)).send(call(1, method=99))
        before = descriptors()
        stack.enter_context(flood(address, 2 * CLIENTS_LIMITS.connections, hosts=8))
        assert stack.enter_context(contextlib.closing(connect(address))).is_closed()
        assert descriptors() - before < 1.25 * CLIENTS_LIMITS.connections
        goes_on.set()
        ends_s = time.monotonic() + 10.0
        while not is_served(address):  # until enough of them were closed
            assert time.monotonic() < ends_s, "no connection is served"
            time.sleep(0.01)


def test_one_host_cannot_push_out_others_with_good_calls() -> None:
    few = CLIENTS_LIMITS._replace(connections=32)
    server = WireServer(METHODS, describe, limits=few, clock_s=Clock())
    with ExitStack() as stack:
        address = server.start("127.0.0.1:0")
        stack.callback(server.stop, 0.0)
        idle = stack.enter_context(caller(address))
        assert answers(idle, 1) is Kind.ANSWER
        for _ in range(few.connections + 1):
            peer = stack.enter_context(caller_from("127.0.0.2", address))
            assert answers(peer, 1) is Kind.ANSWER
        assert answers(idle, 2) is Kind.ANSWER


def test_who_has_proven_something_must_not_be_refused_for_ever() -> None:
    clock = Clock()
    with clients_port(clock) as address, caller(address) as refused, caller(address) as luckless:
        for peer in (refused, luckless):
            assert answers(peer, 1) is Kind.ANSWER
        for number in range(2, 30):
            assert answers(refused, number, Do.REFUSE) is Kind.FAILURE
            assert answers(luckless, number, Do.REFUSE if number % 10 else Do.ECHO) in (Kind.FAILURE, Kind.ANSWER)
        clock.now_s += LIMITS.proving_s + 1
        assert refused.is_closed()
        assert answers(luckless, 30) is Kind.ANSWER


class One:
    def __init__(self, began_s: float) -> None:
        self.began_s = began_s


@given(st.lists(st.sampled_from("abc")), st.sampled_from("abcd"), st.integers(1, 9), st.integers(1, 9))
def test_the_oldest_of_the_most_crowded_host_makes_way(hosts: list[str], host: str, in_all: int, of_host: int) -> None:
    strangers = [(each, One(at)) for at, each in enumerate(hosts)]
    dropped = to_drop(strangers, host, StrangersLimits(in_all, of_host, 0, 1.0))
    assert (dropped is not None) == (len(hosts) >= in_all or hosts.count(host) >= of_host)
    if dropped is not None:
        of = hosts[int(dropped.began_s)]
        assert hosts.index(of) == dropped.began_s
        assert of == host or hosts.count(of) == max(map(hosts.count, hosts))


@contextmanager
def caller_from(host: str, address: str) -> Iterator[Peer]:
    """A connection from an address, greeted."""
    server, _, port = address.rpartition(":")
    with socket.create_connection((server, int(port)), 10.0, source_address=(host, 0)) as connected:
        peer = Peer(connected)
        peer.send(pack_greeting(1))
        assert len(peer.take(WELCOME_BYTES)) == WELCOME_BYTES
        yield peer


@contextmanager
def crowd(address: str, count: int, size: int) -> Iterator[list[Peer]]:
    """So many callers of another host, each with the beginning of a call of so many bytes."""
    host, _, port = address.rpartition(":")
    beginning = call(1, bytes(size))[:1000]
    with ExitStack() as stack:
        peers = []
        for _ in range(count):
            connected = socket.create_connection((host, int(port)), 10.0, source_address=("127.0.0.2", 0))
            peer = Peer(stack.enter_context(contextlib.closing(connected)))
            peer.send(pack_greeting(1), beginning)
            peers.append(peer)
        for peer in peers:
            assert len(peer.take(WELCOME_BYTES)) == WELCOME_BYTES
        yield peers


def test_who_waits_for_memory_is_not_looked_at_whenever_others_call(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    run = AnsweringConnection.run

    def counted(connection: AnsweringConnection) -> None:
        next(looks)
        run(connection)

    monkeypatch.setattr(AnsweringConnection, "run", counted)
    many = LIMITS.of_host - 8
    with clients_port(Clock()) as address, caller(address) as proven:
        assert answers(proven, 1) is Kind.ANSWER
        with crowd(address, many, TAKING_BYTES_MAX):
            for number in range(2, 200):
                assert answers(proven, number) is Kind.ANSWER
            assert next(looks) < 10 * many


def test_a_crowd_of_one_host_leaves_memory_to_newcomers_of_others() -> None:
    with clients_port(Clock()) as address, crowd(address, LIMITS.of_host - 8, 30 * KIB):
        for _ in range(3):
            with caller(address) as newcomer:
                assert answers(newcomer, 1) is Kind.ANSWER


def test_who_waits_for_memory_gets_it_when_others_leave() -> None:
    size = TAKING_BYTES_MAX
    with clients_port(Clock()) as address, crowd(address, 12, size) as peers:
        for peer in peers:
            peer.socket.setblocking(False)
        rests = {peer: memoryview(call(1, bytes(size)))[1000:] for peer in peers}
        ends_s = time.monotonic() + 30.0
        while rests:  # as much as each takes, in turn
            assert time.monotonic() < ends_s, f"{len(rests)} never get memory"
            for peer, rest in list(rests.items()):
                with contextlib.suppress(BlockingIOError):
                    rests[peer] = rest[peer.socket.send(rest) :]
                if not rests[peer]:
                    del rests[peer]
        for peer in peers:
            peer.socket.settimeout(10.0)
            frame = peer.frame()
            assert frame is not None
            assert len(frame[1]) == size


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("192.0.2.1", 1), ("192.0.2.1", 2), True),
        (("192.0.2.1", 1), ("192.0.2.2", 1), False),
        (("::ffff:192.0.2.1", 1, 0, 0), ("192.0.2.1", 2), True),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::ffff:2", 1, 0, 0), True),
        (("2001:db8::1", 1, 0, 0), ("2001:db8:0:1::1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::2", 1, 0, 0), True),
        ("", b"", True),
    ],
)
def test_who_is_the_same_host(one: object, other: object, *, same: bool) -> None:
    assert (host_of(one) == host_of(other)) is same

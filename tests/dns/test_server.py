"""The server against clients of all kinds: sizes, TCP, floods, malformed and hostile messages."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct

import dns.flags
import dns.message
import dns.opcode
import dns.rdataclass
import dns.rdatatype
import pytest
from dns.edns import EDECode
from dns.message import Message
from dns.rcode import Rcode
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InvalidArgument
from taskworker.errors import NameServersUnavailable, StorageUnavailable
from taskworker.outbound.dns import messages
from taskworker.outbound.dns.budget import ReplyBudget, network_of
from taskworker.outbound.dns.directory import Host, Listing
from taskworker.outbound.dns.names import DnsOptions, Names
from taskworker.outbound.dns.server import Listen
from taskworker.outbound.dns.tcp import CLIENTS_MAX
from taskworker.outbound.dns.upstream import UDP_BYTES, NameServer
from tests.dns.conftest import Pool, Serve, Served, framed

FUZZED = 12_000


def query(name: str = "www.example", kind: str = "A", **options: object) -> Message:
    return dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]


def lengthy(served: Served, size: int) -> None:
    """Give big.example TXT records of about ``size`` bytes."""
    served.outside.set(f"big.example 300 TXT {' '.join(chr(34) + 'x' * 99 + chr(34) for _ in range(size // 100))}")


def alive(served: Served) -> bool:
    return served.texts("localhost") == ["127.0.0.1"] and served.texts("localhost", tcp=True) == ["127.0.0.1"]


# -- where it listens ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0.0.0.0:53", "192.0.2.1:53", "[::]:53", "[2001:db8::1]:5353"])
def test_other_machines_are_not_served(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"refusing to serve names on .* listen on 127\.0\.0\.1 or \[::1\]"):
        Listen.parse(text)


@pytest.mark.parametrize("text", ["", "x", "70000", "-1", "localhost:53", "127.0.0.1:", "127.0.0.1"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not PORT"):
        Listen.parse(text)


def test_ipv6_is_served(serve: Serve) -> None:
    served = serve(listen=Listen.parse("[::1]:0"))
    assert served.texts("localhost") == ["127.0.0.1"]
    assert str(served.names.address).startswith("[::1]:")


def test_a_port_that_is_taken_is_said_and_nothing_is_left_running(served: Served) -> None:
    names = Names(Pool(), DnsOptions(listen=Listen(*served.where)))
    with pytest.raises(StorageUnavailable, match=r"cannot serve names on 127\.0\.0\.1:\d+: Address already in use"):
        names.start()
    with pytest.raises(NameServersUnavailable, match="not resolved any more"):
        names.resolve("localhost")


def test_asking_oneself_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="is this server's own address"):
        DnsOptions(listen=Listen.parse("5353"), servers=(NameServer("127.0.0.1", 5353),))


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "payload", "fits"),
    [
        (300, None, True),
        (600, None, False),
        (600, 4096, True),
        (600, 512, False),
        (600, 100, False),
        (1400, 4096, False),
    ],
)
def test_replies_keep_to_the_size_that_the_client_takes(
    served: Served, size: int, payload: int | None, fits: bool
) -> None:
    lengthy(served, size)
    options = {} if payload is None else {"use_edns": 0, "payload": payload}
    wire = served.raw(query("big.example", "TXT", **options).to_wire())
    response = dns.message.from_wire(wire)
    assert bool(response.flags & dns.flags.TC) is not fits
    assert bool(response.answer) is fits
    assert len(wire) <= max(512, min(payload or 0, UDP_BYTES))
    assert (response.edns >= 0) is (payload is not None)
    assert dns.message.from_wire(served.raw(query("big.example", "TXT", **options).to_wire())).flags == response.flags
    assert len(served.texts("big.example", "TXT", tcp=True)[0]) > size


def test_replies_from_memory_carry_each_clients_own_id(served: Served) -> None:
    served.outside.set("www.example 300 A 198.41.0.4")
    for identity in (0, 1, 65535):
        assert dns.message.from_wire(served.raw(query(id=identity).to_wire())).id == identity


# -- what is not looked up -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["www.example", "one.worker.hive"])
def test_any_gets_one_made_up_record(served: Served, name: str) -> None:
    served.outside.set("www.example 300 A 198.41.0.4")
    served.pool.now = Listing(workers=(Host("one", "127.0.0.1:1"),))
    for tcp in (False, True):
        response = served.query(name, "ANY", tcp=tcp)
        assert [str(rrset) for rrset in response.answer] == [f'{name}. 3600 IN HINFO "RFC8482" ""']
    assert not served.outside.asked


@pytest.mark.parametrize("kind", ["AXFR", "IXFR", "MAILA", "TSIG", "OPT"])
def test_transfers_and_the_like_are_refused(served: Served, kind: str) -> None:
    wire = query(kind="TXT").to_wire()[:-4] + struct.pack("!2H", dns.rdatatype.from_text(kind), 1)
    assert dns.message.from_wire(served.raw(wire)).rcode() == Rcode.REFUSED


def test_other_classes_are_refused(served: Served) -> None:
    asked = dns.message.make_query("version.bind", "TXT", dns.rdataclass.CH, use_edns=0)
    response = dns.message.from_wire(served.raw(asked.to_wire()))
    assert response.rcode() == Rcode.REFUSED
    assert [option.code for option in response.options if hasattr(option, "code")] == [EDECode.NOT_SUPPORTED]


def test_later_versions_of_edns_are_told_so(served: Served) -> None:
    assert dns.message.from_wire(served.raw(query(use_edns=1).to_wire())).rcode() == Rcode.BADVERS


def test_other_operations_are_not_implemented(served: Served) -> None:
    for operation in (dns.opcode.UPDATE, dns.opcode.NOTIFY, dns.opcode.STATUS):
        wire = bytearray(query().to_wire())
        wire[2] |= operation << 3
        assert served.raw(bytes(wire))[3] & 0xF == Rcode.NOTIMP


@pytest.mark.parametrize(
    "wire",
    [b"", b"\0" * 11, dns.message.make_response(query()).to_wire()],
    ids=["nothing", "cut off", "a reply"],  # their bytes are others in each process
)
def test_what_deserves_no_reply_gets_none(served: Served, wire: bytes) -> None:
    assert served.raw(wire, answered=False)[:2] == struct.pack("!H", 4711)  # the reply to the question after it


@pytest.mark.parametrize(
    "wire",
    [
        bytes(12),  # no question
        query().to_wire()[:-1],
        query().to_wire() + b"x",
        query().to_wire()[:4] + b"\0\2" + query().to_wire()[6:],  # two questions told, one there
        struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",  # a name that points to itself
        struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\x3fx",
        query(use_edns=0).to_wire()[:-11] * 2,
    ],
    ids=["no question", "cut off", "more after it", "one too few", "a loop", "a long label", "twice"],
)
def test_malformed_questions_are_told_so(served: Served, wire: bytes) -> None:
    reply = served.raw(wire)
    assert reply[:2] == wire[:2]
    assert reply[3] & 0xF == Rcode.FORMERR
    assert len(reply) <= len(wire)


def mutated(random_: random.Random) -> bytes:
    seeds = [query().to_wire(), query("a.worker.hive", "SRV", use_edns=0).to_wire(), query("x", "ANY").to_wire()]
    wire = bytearray(random_.choice(seeds))
    for _ in range(random_.randint(1, 8)):
        match random_.randrange(4):
            case 0:
                wire[random_.randrange(len(wire))] = random_.randrange(256)
            case 1:
                del wire[random_.randrange(len(wire)) :]
                wire += random_.randbytes(random_.randrange(20))
            case 2:
                at = random_.randrange(len(wire) + 1)
                wire[at:at] = random_.randbytes(random_.randrange(1, 30))
            case _:
                wire += bytes([0xC0, random_.randrange(len(wire) + 1) & 0xFF])
        if len(wire) < 2:
            wire += b"\0\0"
    return bytes(wire)


def test_the_server_survives_a_flood_of_malformed_messages(served: Served) -> None:
    random_ = random.Random(8)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(served.where)
        one.setblocking(False)
        for number in range(FUZZED):
            one.send(mutated(random_) if number % 8 else random_.randbytes(random_.randrange(100)))
            if number % 100 == 99:
                while not drained(one):
                    pass
                assert served.raw(query("localhost").to_wire())  # what was sent before it is done with
    assert alive(served)


def drained(one: socket.socket) -> bool:
    try:
        one.recv(65535)
    except BlockingIOError:
        return True
    return False


def test_garbage_over_tcp_ends_the_conversation_at_most(served: Served) -> None:
    random_ = random.Random(9)
    for _ in range(200):
        with served.connection() as one:
            wire = mutated(random_)
            one.sendall(framed(wire) if random_.random() < 0.8 else wire)
            one.shutdown(socket.SHUT_WR)
            while one.recv(4096):
                pass
    assert alive(served)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_can_be_read(wire: bytes) -> None:
    for over_tcp in (False, True):
        read = messages.read(wire, over_tcp=over_tcp)
        if isinstance(read, bytes):
            assert len(read) == 12
            assert read[:2] == wire[:2]
        assert len(wire) >= 12 or read is None


# -- TCP -------------------------------------------------------------------------------------------


def replies(one: socket.socket, count: int) -> list[Message]:
    with one.makefile("rb") as file:
        return [dns.message.from_wire(file.read(struct.unpack("!H", file.read(2))[0])) for _ in range(count)]


def test_questions_on_one_connection_do_not_wait_for_each_other(served: Served) -> None:
    served.outside.silent = True
    with served.connection() as one:
        one.sendall(framed(query("slow.example", id=1), query("localhost", id=2), query("localhost", id=3)))
        assert {reply.id for reply in replies(one, 2)} == {2, 3}


def test_the_last_answers_come_after_the_client_has_ended_its_side(served: Served) -> None:
    served.outside.set("www.example 300 A 198.41.0.4")
    served.outside.delay_s = 0.1
    with served.connection() as one:
        one.sendall(framed(*(query(id=number) for number in range(40))))
        one.shutdown(socket.SHUT_WR)
        assert sorted(reply.id for reply in replies(one, 40)) == list(range(40))
        assert one.recv(1) == b""


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\x20abc"])
def test_idle_clients_are_sent_away(serve: Serve, sent: bytes) -> None:
    served = serve(tcp_idle_s=0.2)
    with served.connection() as one:
        one.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""


def held_up(served: Served, number: int) -> socket.socket:
    """A client whose question, with this id, is being looked up until ``may_answer`` is set."""
    served.outside.set("www.example 300 A 198.41.0.4")
    served.outside.may_answer.clear()
    while True:
        one = served.connection()
        one.sendall(framed(query(id=number)))
        while not served.outside.asked["www.example", "A"]:
            ready, _, _ = select.select([one], [], [], 0.02)
            if ready:  # sent away before its question came
                break
        else:
            return one
        one.close()


def test_a_client_that_waits_for_its_answer_is_not_idle(serve: Serve) -> None:
    served = serve(tcp_idle_s=0.3)
    with held_up(served, 7) as one:
        one.sendall(b"\0")  # of its next question
        with served.connection() as idle:  # for less time than the other one has waited
            assert idle.recv(1) == b""
        served.outside.may_answer.set()
        assert [reply.id for reply in replies(one, 1)] == [7]
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""  # idle from its answer on


def test_a_client_that_waits_for_its_answer_keeps_its_place(serve: Serve) -> None:
    served = serve(tcp_idle_s=600.0)
    with held_up(served, 7) as one, contextlib.ExitStack() as stack:
        for _ in range(CLIENTS_MAX + 6):
            stack.enter_context(served.connection()).sendall(b"\0")
        assert served.texts("localhost", tcp=True) == ["127.0.0.1"]
        served.outside.may_answer.set()
        assert [reply.id for reply in replies(one, 1)] == [7]


def test_messages_that_are_far_too_long_end_the_conversation(served: Served) -> None:
    with served.connection() as one:
        one.sendall(b"\xff\xff" + bytes(100))
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""


def test_clients_that_hold_on_to_connections_shut_nobody_out(serve: Serve) -> None:
    served = serve(tcp_idle_s=600.0)
    held = [served.connection() for _ in range(CLIENTS_MAX)]
    held[0].sendall(framed(query("localhost")))
    assert replies(held[0], 1)
    held += [served.connection() for _ in range(20)]
    try:
        held[0].sendall(framed(query("localhost")))
        assert replies(held[0], 1)
        assert served.texts("localhost", tcp=True) == ["127.0.0.1"]
        held[-1].sendall(framed(query("localhost")))
        assert replies(held[-1], 1)
        gone = 0
        for one in held[1:11]:
            try:
                gone += one.recv(1) == b""
            except ConnectionResetError:
                gone += 1
        assert gone == 10  # the ones that were idle longest
    finally:
        for one in held:
            one.close()


# -- amplification ---------------------------------------------------------------------------------


def test_no_network_gets_more_than_its_budget(serve: Serve) -> None:
    served = serve(excess_bytes_per_s=10_000)
    lengthy(served, 1000)
    wire = query("big.example", "TXT", use_edns=0).to_wire()
    served.raw(wire)
    got = [served.raw(wire) for _ in range(200)]
    whole = [reply for reply in got if len(reply) > 512]
    cut = [reply for reply in got if len(reply) <= 512]
    assert 0 < len(whole) < 60
    assert len(cut) > 140
    for reply in cut:
        assert len(reply) <= len(wire)
        response = dns.message.from_wire(reply)
        assert response.flags & dns.flags.TC
        assert response.edns == 0
        assert response.question[0].name.to_text() == "big.example."
    assert served.texts("big.example", "TXT", tcp=True)  # honest clients get it so
    served.clock.ahead_s += 5
    assert len(served.raw(wire)) > 512


def test_small_answers_are_cut_as_well_once_the_budget_is_used_up(serve: Serve) -> None:
    served = serve(excess_bytes_per_s=1)
    response = served.query("localhost")
    assert response.flags & dns.flags.TC
    assert response.edns < 0
    assert served.texts("localhost", tcp=True) == ["127.0.0.1"]


@given(st.lists(st.tuples(st.integers(0, 1500), st.floats(0, 0.5)), min_size=1, max_size=60))
def test_the_budget_is_never_exceeded(asked: list[tuple[int, float]]) -> None:
    now = [start := 1000.0]
    budget = ReplyBudget(1000, lambda: now[0])
    given_out = 0
    for excess, pause_s in asked:
        now[0] += pause_s
        given_out += excess if budget.allows("192.0.2.7", excess) else 0
    assert given_out <= 1000 * (1 + now[0] - start) + 1e-6
    assert budget.allows("192.0.3.7", 1000)  # another network has its own


def test_clients_are_counted_by_their_network() -> None:
    assert network_of("192.0.2.1") == network_of("192.0.2.254") != network_of("192.0.3.1")
    assert network_of("2001:db8::1") == network_of("2001:db8:0:ff::1%eth0") != network_of("2001:db8:0:100::1")

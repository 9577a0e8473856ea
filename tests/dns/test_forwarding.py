"""Outside names: forwarded, cached, counted down, renewed, given out late, and never from a forger."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import dns.flags
import dns.name
import pytest
from dns.edns import EDECode
from dns.message import Message
from dns.rcode import Rcode
from dns.rdatatype import RdataType

from storage.errors import InvalidArgument, PermissionDenied
from taskworker.calls.call import Call
from taskworker.errors import DeadlineExceeded, NameNotFound, NameServersUnavailable
from taskworker.outbound.dns.call import NamesOfCall
from taskworker.outbound.dns.upstream import NameServer, Upstream
from taskworker.protos import outside_pb2
from taskworker.services.capabilities import OutsideService
from taskworker.shares import UserPlaces
from tests.dns.conftest import TIMEOUT_S, Serve, Served
from tests.dns.upstream import TestNameServer

WWW = ("www.example", "A")


@pytest.fixture
def known(served: Served) -> Served:
    served.outside.set(
        "www.example 100 A 198.41.0.4",
        "www.example 100 A 198.41.0.5",
        "alias.example 300 CNAME www.example.",
        "mail.example 100 MX 10 b.mx.example.",
        "mail.example 100 MX 5 a.mx.example.",
        'text.example 100 TXT "v=one, two" " three"',
        "_sip._tcp.example 100 SRV 1 2 5060 sip.example.",
        "5.0.41.198.in-addr.arpa 100 PTR www.example.",
        "example 100 NS ns.example.",
    )
    return served


def await_(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def codes(response: Message) -> list[EDECode]:
    return [option.code for option in response.options if hasattr(option, "code")]


@pytest.mark.parametrize("tcp", [False, True])
def test_names_are_forwarded(known: Served, tcp: bool) -> None:
    assert known.texts("www.example", tcp=tcp) == ["198.41.0.4", "198.41.0.5"]
    response = known.query("alias.example", tcp=tcp)
    assert [(rrset.rdtype.name, rrset.ttl) for rrset in response.answer] == [("CNAME", 300), ("A", 100)]
    assert response.flags & dns.flags.RA
    assert not response.flags & (dns.flags.AA | dns.flags.AD)


def test_all_kinds_as_texts(known: Served) -> None:
    resolve = known.names.resolve
    assert resolve("www.example").records == ("198.41.0.4", "198.41.0.5")
    assert resolve("ALIAS.example.").records == ("198.41.0.4", "198.41.0.5")
    assert resolve("alias.example", "cname").records == ("www.example",)
    assert resolve("mail.example", "MX").records == ("5 a.mx.example", "10 b.mx.example")
    assert resolve("text.example", "TXT").records == ("v=one, two three",)
    assert resolve("_sip._tcp.example", "SRV").records == ("1 2 5060 sip.example",)
    assert resolve("198.41.0.5", "PTR").records == ("www.example",)
    assert resolve("example", "NS").records == ("ns.example",)
    with pytest.raises(NameNotFound, match=r"www\.example exists, but has no AAAA records"):
        resolve("www.example", "AAAA")


@pytest.mark.parametrize(
    ("name", "kind"), [("", "A"), ("a..b", "A"), ("x" * 64, "A"), ("a" * 2000, "A"), ("a.b", "ANY")]
)
def test_what_cannot_be_asked_is_said(known: Served, name: str, kind: str) -> None:
    with pytest.raises(InvalidArgument):
        known.names.resolve(name, kind)


def test_ttls_count_down_and_then_it_is_asked_again(known: Served) -> None:
    assert known.query("www.example").answer[0].ttl == 100
    known.clock.ahead_s = 40
    assert known.query("www.example").answer[0].ttl in (59, 60)
    assert known.query("alias.example").answer[0].ttl == 300
    assert known.outside.asked[WWW] == 1
    known.clock.ahead_s = 101
    assert known.query("www.example").answer[0].ttl == 100
    assert known.outside.asked[WWW] == 2


@pytest.mark.parametrize(
    ("kind", "name", "rcode"), [("A", "absent.example", Rcode.NXDOMAIN), ("MX", "www.example", Rcode.NOERROR)]
)
def test_that_there_is_nothing_is_kept_as_long_as_the_soa_says(
    known: Served, kind: str, name: str, rcode: Rcode
) -> None:
    for ahead_s, ttls in ((0, (60,)), (30, (29, 30))):
        known.clock.ahead_s = ahead_s
        response = known.query(name, kind)
        assert (response.rcode(), response.answer) == (rcode, [])
        assert response.authority[0].ttl in ttls
    assert known.outside.asked[name, kind] == 1
    known.clock.ahead_s = 62
    known.query(name, kind)
    assert known.outside.asked[name, kind] == 2


def test_answers_too_long_for_udp_are_fetched_over_tcp(known: Served) -> None:
    known.outside.set(*(f'long.example 100 TXT "{number:0>200}"' for number in range(20)))
    response = known.query("long.example", "TXT", use_edns=0, payload=4096)
    assert response.flags & dns.flags.TC
    assert len(known.texts("long.example", "TXT", tcp=True)) == 20
    assert known.outside.tcp_asked == 1


def test_answers_of_usual_size_need_no_tcp(known: Served) -> None:
    known.outside.set(*(f'mid.example 100 TXT "{number:0>200}"' for number in range(5)))
    assert len(known.texts("mid.example", "TXT", tcp=True)) == 5
    assert known.outside.tcp_asked == 0  # as EDNS says that more than 512 bytes are taken


def test_equal_questions_at_once_are_one(known: Served) -> None:
    known.outside.delay_s = 0.3
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: known.names.resolve("www.example").records, range(16)))
    assert found == [("198.41.0.4", "198.41.0.5")] * 16
    assert known.outside.asked[WWW] == 1


def test_questions_cannot_be_guessed(known: Served) -> None:
    for number in range(40):
        known.query(f"n{number}.example")
    assert len(set(known.outside.ports)) > 20
    assert len(set(known.outside.ids)) > 35


def test_forged_answers_are_not_believed(known: Served) -> None:
    known.outside.forging = True
    assert known.texts("www.example") == ["198.41.0.4", "198.41.0.5"]


def test_another_server_is_asked_when_one_fails(serve: Serve) -> None:
    with TestNameServer() as failing:
        failing.failing = True
        served = serve()
        two = serve(servers=(failing.server, served.outside.server))
        served.outside.set("www.example 100 A 198.41.0.4")
        assert two.texts("www.example") == ["198.41.0.4"]
        assert failing.asked[WWW]


def test_a_failure_is_told_and_kept_for_moments(known: Served) -> None:
    known.outside.failing = True
    response = known.query("www.example", use_edns=0)
    assert response.rcode() == Rcode.SERVFAIL
    assert codes(response) == [EDECode.NO_REACHABLE_AUTHORITY]
    asked = known.outside.asked[WWW]
    with pytest.raises(NameServersUnavailable, match="the name servers do not answer"):
        known.names.resolve("www.example")
    assert known.outside.asked[WWW] == asked
    known.outside.failing = False
    known.clock.ahead_s = 6
    assert known.texts("www.example") == ["198.41.0.4", "198.41.0.5"]


def test_a_call_waits_no_longer_than_it_may(known: Served) -> None:
    known.outside.silent = True
    with pytest.raises(DeadlineExceeded, match=r"www\.example could not be resolved within 0\.1 s"):
        known.names.resolve("www.example", timeout_s=0.1)


def test_old_answers_are_given_out_while_no_server_answers(serve: Serve) -> None:
    served = serve(stale_after_s=0.1)
    served.outside.set("www.example 100 A 198.41.0.4")
    served.query("www.example")
    served.outside.silent = True
    served.clock.ahead_s = 200
    for _ in range(3):
        response = served.query("www.example", use_edns=0)
        assert served.outside.asked[WWW] == 2  # the first answer was not waited for until all tries had failed
        assert [str(record) for record in response.answer[0]] == ["198.41.0.4"]
        assert response.answer[0].ttl == 30
        assert codes(response) == [EDECode.STALE_ANSWER]
    served.outside.silent = False
    served.outside.set("www.example 100 A 198.41.0.5")
    served.clock.ahead_s = 240  # past the rest that a failing server gets
    await_(lambda: served.texts("www.example") == ["198.41.0.5"])


def test_servers_that_fail_get_a_rest_while_there_is_an_old_answer(known: Served) -> None:
    known.query("www.example")
    known.outside.failing = True
    known.clock.ahead_s = 200
    assert known.query("www.example").answer[0].ttl == 30
    asked = known.outside.asked[WWW]
    known.clock.ahead_s = 220
    assert known.query("www.example").answer[0].ttl == 30
    assert known.outside.asked[WWW] == asked > 1
    known.outside.failing = False
    known.clock.ahead_s = 240
    assert known.query("www.example").answer[0].ttl == 100


def test_that_there_is_nothing_and_what_is_refused_stay_so_when_out_of_date(serve: Serve) -> None:
    served = serve(stale_after_s=0.1)
    served.outside.set("evil.example 60 A 127.0.0.1")
    for ahead_s, silent in ((0, False), (70, True)):
        served.clock.ahead_s, served.outside.silent = ahead_s, silent
        with pytest.raises(NameNotFound, match=r"there is no name absent\.example"):
            served.names.resolve("absent.example")
        with pytest.raises(PermissionDenied, match="not public"):
            served.names.resolve("evil.example")


def test_the_fresh_answer_is_preferred_where_it_comes_in_time(known: Served) -> None:
    known.query("www.example")
    known.outside.set("www.example 100 A 198.41.0.9")
    known.clock.ahead_s = 200
    assert known.texts("www.example") == ["198.41.0.9"]


def test_very_old_answers_are_not_given_out(known: Served) -> None:
    known.query("www.example")
    known.outside.failing = True
    known.clock.ahead_s = 100 + 86_400 + 1
    assert known.query("www.example").rcode() == Rcode.SERVFAIL


def test_what_is_wanted_near_its_end_is_renewed_before_it(known: Served) -> None:
    known.query("www.example")
    known.outside.set("www.example 100 A 198.41.0.9")
    known.clock.ahead_s = 95
    assert known.texts("www.example") == ["198.41.0.4", "198.41.0.5"]  # at once, from here
    await_(lambda: known.outside.asked[WWW] == 2)
    known.clock.ahead_s = 97
    await_(lambda: known.texts("www.example") == ["198.41.0.9"])
    assert known.outside.asked[WWW] == 2


@pytest.mark.parametrize("name", ["localhost", "db.localhost"])
def test_localhost_is_this_machine(known: Served, name: str) -> None:
    assert known.texts(name) == ["127.0.0.1"]
    assert known.texts(name, "AAAA") == ["::1"]
    assert known.query("a.invalid").rcode() == Rcode.NXDOMAIN
    assert known.query("a.onion").rcode() == Rcode.NXDOMAIN
    assert not known.outside.asked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", NameServer("192.0.2.1", 53)),
        ("192.0.2.1:5353", NameServer("192.0.2.1", 5353)),
        ("2001:db8::1", NameServer("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", NameServer("2001:db8::1", 5353)),
    ],
)
def test_name_servers_as_texts(text: str, expected: NameServer) -> None:
    assert NameServer.parse(text) == expected


@pytest.mark.parametrize("text", ["", "dns.example", "192.0.2.1:0", "192.0.2.1:x", "192.0.2.1:70000", "[::1", ":53"])
def test_what_is_no_name_server_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        NameServer.parse(text)


class Hurried:
    """A caller who waits for a tenth of a second."""

    def time_remaining(self) -> float:
        return 0.1


def test_a_lookup_of_a_call_ends_when_the_call_waits_no_more(known: Served) -> None:
    def names_of(call: Call, timeout_s: float | None) -> NamesOfCall:
        return NamesOfCall(known.names, call.function, lambda _function, _host: True, timeout_s)

    places = UserPlaces(1, "this pool", "lookups of names")
    service = OutsideService(lambda _token: Call("f"), names_of, places, places)  # type: ignore[arg-type]
    known.outside.silent = True
    with pytest.raises(DeadlineExceeded, match=r"www\.example could not be resolved within 0\.1 s"):
        service.Resolve(outside_pb2.ResolveRequest(token="t", name=WWW[0], type="A"), Hurried())  # type: ignore[arg-type]


def test_answers_count_by_the_memory_that_they_take() -> None:
    name = dns.name.from_text("www.example")
    with TestNameServer() as outside:
        outside.set(*(f"www.example 100 A 198.41.{number >> 8}.{number & 255}" for number in range(1000)))

        async def asked() -> tuple[int, int]:
            upstream = Upstream([outside.server])
            await upstream.ask(name, RdataType.A)
            tracemalloc.start()
            try:
                answer = await upstream.ask(name, RdataType.A)
                gc.collect()
                return answer.size, tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()

        counted, taken = asyncio.run(asked())
    assert counted < 3 * taken
    assert taken < 1.5 * counted

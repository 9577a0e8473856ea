"""The pool's own zone, as clients see it."""

from __future__ import annotations

import time

import dns.flags
import dns.message
import pytest
from dns.rcode import Rcode
from dns.rdatatype import RdataType
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InvalidArgument
from taskworker.errors import NameNotFound
from taskworker.outbound.dns.directory import Host, Listing, NamedFunction
from taskworker.outbound.dns.names import parse_name
from taskworker.outbound.dns.zone import TTL_S, Zone, named
from tests.dns.conftest import Pool, Served

LISTING = Listing(
    nodes=(Host("p001", "127.0.0.1:50051", ("node=p001",)),),
    workers=(
        Host("worker_001", "127.0.0.1:50052", ("worker=worker_001", "state=alive")),
        Host("rack-2.worker_002", "[::1]:50053", ("worker=rack-2.worker_002", "state=alive")),
        Host("gone", "", ("worker=gone", "state=lost")),
        Host("local", "unix:/tmp/worker.sock", ("state=alive",)),
    ),
    functions=(NamedFunction("calculate", ("worker_001", "rack-2.worker_002"), ("function=calculate",)),),
)


@pytest.fixture
def filled(served: Served) -> Served:
    served.pool.now = LISTING
    return served


def test_a_worker_has_its_address_its_service_and_its_text(filled: Served) -> None:
    assert filled.texts("worker_001.worker.hive") == ["127.0.0.1"]
    assert filled.texts("worker_001.worker.hive", "SRV") == ["0 0 50052 worker_001.worker.hive."]
    assert filled.texts("worker_001.worker.hive", "TXT") == ['"worker=worker_001" "state=alive"']
    assert filled.texts("rack-2.worker_002.worker.hive", "AAAA") == ["::1"]
    assert filled.texts("p001.pool.hive", "SRV") == ["0 0 50051 p001.pool.hive."]


def test_a_function_has_the_addresses_of_those_that_can_run_it(filled: Served) -> None:
    assert filled.texts("calculate.function.hive") == ["127.0.0.1"]
    assert filled.texts("calculate.function.hive", "AAAA") == ["::1"]
    expected = ["0 0 50052 worker_001.worker.hive.", "0 0 50053 rack-2.worker_002.worker.hive."]
    assert filled.texts("calculate.function.hive", "SRV") == expected


def test_the_zone_names_its_server(filled: Served) -> None:
    assert filled.texts("hive", "NS") == ["p001.pool.hive."]
    response = filled.query("hive", "SOA")
    assert response.answer[0][0].mname.to_text() == "p001.pool.hive."
    assert response.flags & dns.flags.AA


def test_case_does_not_matter_and_is_given_back_as_asked(filled: Served) -> None:
    response = filled.query("WoRkEr_001.wOrKeR.hIvE")
    assert str(response.answer[0][0]) == "127.0.0.1"
    assert response.question[0].name.to_text() == "WoRkEr_001.wOrKeR.hIvE."


def test_ids_that_differ_in_case_share_their_name(served: Served) -> None:
    served.pool.now = Listing(workers=(Host("one", "127.0.0.1:1"), Host("ONE", "127.0.0.2:2")))
    assert served.texts("One.worker.hive") == ["127.0.0.1", "127.0.0.2"]


@pytest.mark.parametrize(
    ("own", "name", "others"),
    [
        ("straße", "xn--strae-oqa", ("strasse",)),
        ("wörk_1", "xn--wrk_1-jua", ("work_1", "wörk-1")),
        ("a。b", "a.b", ("ab",)),  # what counts as a dot in a name that is asked for
        ("Ёж.Ж", "xn--f1a7c.xn--f1a", ("еж.ж",)),
        (r"a\.b", r"a\\.b", ("a.b", r"a\.b")),
    ],
)
def test_letters_beyond_ascii_go_by_one_standard(served: Served, own: str, name: str, others: tuple[str, ...]) -> None:
    served.pool.now = Listing(workers=(Host(own, "127.0.0.1:1"),))
    assert served.texts(f"{name}.worker.hive") == ["127.0.0.1"]
    if "\\" not in own:
        assert served.names.resolve(f"{own}.worker.hive").records == ("127.0.0.1",)
    for other in others:
        with pytest.raises(NameNotFound):
            served.names.resolve(f"{other}.worker.hive")


@pytest.mark.parametrize("own", ["🦀", "ä b", "-ä", "ä..b", "\u200dx", "x" * 64])
def test_ids_that_are_no_names_have_none(own: str) -> None:
    assert named(own, parse_name("worker.hive")) is None
    with pytest.raises(InvalidArgument, match="is no domain name"):
        parse_name(f"{own}.worker.hive")


@pytest.mark.parametrize("name", ["absent.worker.hive", "other.hive", "a.worker_001.worker.hive", "absent.pool.hive"])
def test_what_is_not_there_is_denied_with_the_soa(filled: Served, name: str) -> None:
    response = filled.query(name)
    assert response.rcode() == Rcode.NXDOMAIN
    assert [rrset.rdtype.name for rrset in response.authority] == ["SOA"]
    assert response.authority[0].ttl == response.authority[0][0].minimum == TTL_S
    assert response.flags & dns.flags.AA


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("worker_001.worker.hive", "MX"),
        ("gone.worker.hive", "A"),  # a member without an address keeps its name
        ("local.worker.hive", "A"),  # at a socket file
        ("worker_002.worker.hive", "A"),  # only has a name under it
        ("worker.hive", "A"),
        ("hive", "A"),
    ],
)
def test_what_is_there_without_such_records_is_answered_with_the_soa(filled: Served, name: str, kind: str) -> None:
    response = filled.query(name, kind)
    assert (response.rcode(), response.answer) == (Rcode.NOERROR, [])
    assert [rrset.rdtype.name for rrset in response.authority] == ["SOA"]


def test_a_member_that_is_gone_still_says_how_it_is(filled: Served) -> None:
    assert filled.texts("gone.worker.hive", "TXT") == ['"worker=gone" "state=lost"']


def test_who_comes_and_goes_is_seen_within_a_heartbeat(filled: Served) -> None:
    before = filled.query("hive", "SOA").answer[0][0].serial
    filled.pool.now = Listing(nodes=LISTING.nodes, workers=(Host("new", "127.0.0.9:9"),))
    filled.clock.ahead_s = TTL_S
    assert filled.texts("new.worker.hive") == ["127.0.0.9"]
    assert filled.query("worker_001.worker.hive").rcode() == Rcode.NXDOMAIN
    assert filled.query("hive", "SOA").answer[0][0].serial == before + 1


def test_a_long_answer_is_truncated_over_udp_and_whole_over_tcp(served: Served) -> None:
    workers = tuple(Host(f"worker_{number:03}", f"127.0.0.1:{number}") for number in range(1, 201))
    function = NamedFunction("busy", tuple(worker.name for worker in workers))
    served.pool.now = Listing(workers=workers, functions=(function,))
    response = served.query("busy.function.hive", "SRV", use_edns=0)
    assert response.flags & dns.flags.TC
    assert response.answer == []
    assert len(served.texts("busy.function.hive", "SRV", tcp=True)) == 200
    assert len(served.names.resolve("busy.function.hive", "SRV").records) == 200


def test_internal_names_are_never_asked_outside(filled: Served) -> None:
    with pytest.raises(NameNotFound, match=r"there is no name absent\.worker\.hive"):
        filled.names.resolve("absent.worker.hive")
    assert not filled.outside.asked


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=70), max_size=6, unique_by=str.lower))
def test_every_id_that_can_have_a_name_is_found_by_it(ids: list[str]) -> None:
    hosts = tuple(Host(one, f"127.0.0.1:{number}") for number, one in enumerate(ids, 1))
    functions = tuple(NamedFunction(one, (one,)) for one in ids)
    zone = Zone(Pool(Listing(workers=hosts, functions=functions)), time.monotonic, 1)
    for number, one in enumerate(ids, 1):
        for under in ("worker.hive", "function.hive"):
            name = named(one, parse_name(under))
            if name is not None:
                found = zone.answer(name, RdataType.SRV).answer
                assert any(record.port == number for record in found.answer[0])
                dns.message.make_query(name, "A").to_wire()

"""Nothing gets at a forbidden address, whatever the URL, the name, the redirect or the resolver says."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InvalidArgument, PermissionDenied, StorageError
from taskworker.errors import ApiLimitExceeded, ApiUnreachable
from taskworker.outbound.egress.addresses import is_neighbour
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.outbound.egress.rules import parse_rule
from taskworker.outbound.egress.urls import parse_url
from tests.egress.conftest import Egress, Make
from tests.egress.corpus import LOCATIONS, NAMES, URLS
from tests.egress.servers import Received, Server, Writer, answer, canary

REFUSALS = (InvalidArgument, PermissionDenied, ApiUnreachable)


@pytest.fixture
def canaries() -> Iterator[list[Server]]:
    """On both loopbacks, at one port."""
    with canary() as first, canary("127.0.0.2", first.port) as second, canary("::1", first.port) as third:
        yield [first, second, third]


@pytest.fixture
def wide_open(make: Make, canaries: list[Server]) -> Egress:
    """Function f may call all hosts of the corpus, by rules that open no private address."""
    egress = make(EgressLimits(total_s=5))
    for name, addresses in NAMES.items():
        egress.names.lead(name, addresses)
    for url in [*URLS, *LOCATIONS]:
        allow_host_of(egress, url.format(port=canaries[0].port))
    return egress


def allow_host_of(egress: Egress, url: str) -> None:
    """Let the host be called if there is any way to write a rule for it: what refuses it then is its address."""
    try:
        parsed = parse_url(url)
        host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
        egress.allow(f"{host}:{parsed.port}", private=False)
    except InvalidArgument:
        return


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(set(URLS)) + len(set(LOCATIONS)) >= 200


def test_no_url_gets_at_a_forbidden_address(wide_open: Egress, canaries: list[Server]) -> None:
    reached = []
    for url in URLS:
        try:
            wide_open.request(url.format(port=canaries[0].port))
        except REFUSALS:
            continue
        reached.append(url)
    assert reached == []
    assert [server.connections for server in canaries] == [0, 0, 0]


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        *((host, "number") for host in ("127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "017700000001", "0")),
        *((host, "number") for host in ("127。0。0。1", "1.2.3.4.5", "a.0x1")),
        ("good.example@127.0.0.1", "user name"),
        ("127.0.0.1.", "dot"),
        ("127.0.0.1\\", "backslash"),
        ("xn--999999999", "xn--"),
    ],
)
def test_hosts_that_some_take_for_another_are_none_for_any_resolver(host: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        parse_url(f"http://{host}/")


def test_no_rule_opens_what_it_does_not_name(make: Make, canaries: list[Server]) -> None:
    egress = make()
    egress.allow("good.example")
    egress.allow("*.good.example")
    for url in URLS:
        with pytest.raises(StorageError):
            egress.request(url.format(port=canaries[0].port), timeout_s=0.2)
    assert [server.connections for server in canaries] == [0, 0, 0]


def redirecting(request: Received, writer: Writer) -> None:
    location = bytes.fromhex(request.target.removeprefix("/")).decode()
    answer(writer, status="302 Found", headers=f"Location: {location}\r\n")


async def redirect(request: Received, writer: Writer) -> None:
    redirecting(request, writer)


def test_no_redirect_leads_to_a_forbidden_address(wide_open: Egress, canaries: list[Server]) -> None:
    with Server(redirect) as server:
        wide_open.allow(f"127.0.0.1:{server.port}", private=True)
        for location in LOCATIONS:
            target = location.format(port=canaries[0].port).encode().hex()
            with pytest.raises((*REFUSALS, ApiLimitExceeded)):  # "//" is the same URL again
                wide_open.request(f"http://127.0.0.1:{server.port}/{target}")
        assert len(server.received) >= len(LOCATIONS) - 1
    assert [one.connections for one in canaries] == [0, 0, 0]


def test_redirects_come_to_an_end(egress: Egress) -> None:
    async def onwards(request: Received, writer: Writer) -> None:
        answer(writer, status="307 Temporary Redirect", headers=f"Location: {request.target}x\r\n")

    with Server(onwards) as server:
        egress.allow(f"127.0.0.1:{server.port}")
        with pytest.raises(ApiLimitExceeded, match="at most 5 redirects"):
            egress.request(f"http://127.0.0.1:{server.port}/")
        assert len(server.received) == 6
        response = egress.request(f"http://127.0.0.1:{server.port}/", follow_redirects=False)
        assert (response.status, dict(response.headers)["location"]) == (307, "/x")


def test_what_was_checked_is_what_is_connected_to(make: Make, canaries: list[Server]) -> None:
    """A name that changes its meaning between any two looks at it."""

    async def hello(_request: Received, writer: Writer) -> None:
        answer(writer, b"hello", headers="Connection: close\r\n")
        writer.close()

    egress = make()
    with Server(hello, host="127.0.0.3", port=canaries[0].port):
        place = f"rebinding.example:{canaries[0].port}"
        egress.allow(place)
        for _ in range(3):
            egress.names.lead("rebinding.example", ["127.0.0.3"], ["127.0.0.1"])
            before = len(egress.names.asked)
            assert egress.request(f"http://{place}/").body == b"hello"
            assert len(egress.names.asked) == before + 1  # one look, and no second that could differ
    assert [server.connections for server in canaries] == [0, 0, 0]


def test_a_name_that_turns_private_is_refused(make: Make, canaries: list[Server]) -> None:
    egress = make()
    place = f"rebinding.example:{canaries[0].port}"
    egress.allow(place, private=False)
    for answers in (["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::ffff:127.0.0.1"], ["0.0.0.0"], ["::1"]):
        egress.names.lead("rebinding.example", answers)
        with pytest.raises(PermissionDenied, match="private, local or reserved"):
            egress.request(f"http://{place}/")
    assert [server.connections for server in canaries] == [0, 0, 0]


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "fe80::1",
        "fe80::5efe:a00:1",  # link-local, with a private address inside
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "::",
        # Metadata servers that are not on link-local addresses.
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        # Of no network: documentation, benchmarks, relays, site-local.
        "192.0.2.1",
        "198.18.0.1",
        "192.88.99.1",
        "2001:db8::1",
        "fec0::1",
    ],
)
def test_even_rules_for_private_hosts_open_no_metadata_and_no_groups(egress: Egress, address: str) -> None:
    egress.allow("inner.example")
    egress.names.lead("inner.example", [address])
    with pytest.raises(PermissionDenied):
        egress.request("http://inner.example/")


@pytest.mark.parametrize("address", ["192.0.0.192", "192.0.0.170", "168.63.129.16"])
def test_special_addresses_are_not_public_whatever_python_knows_of_them(egress: Egress, address: str) -> None:
    egress.allow("outer.example", private=False)
    egress.names.lead("outer.example", [address])
    with pytest.raises(PermissionDenied, match="private, local or reserved"):
        egress.request("http://outer.example/")


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "100.64.0.1", "127.0.0.1", "172.16.0.1", "192.168.0.1", "::1", "fc00::1", "::ffff:10.0.0.1"]
)
def test_private_networks_are_neighbours(address: str) -> None:
    assert is_neighbour(ipaddress.ip_address(address))


def test_connections_to_private_hosts_are_no_others_to_use(egress: Egress, canaries: list[Server]) -> None:
    """A pooled connection is of the function that it was made for, and of rules that open private addresses."""
    url = f"http://127.0.0.1:{canaries[0].port}"
    egress.allow(f"127.0.0.1:{canaries[0].port}/open")
    assert egress.request(f"{url}/open").status == 200
    egress.allow(f"127.0.0.1:{canaries[0].port}/shut", private=False)
    with pytest.raises(PermissionDenied, match="private"):
        egress.request(f"{url}/shut")
    egress.allow(f"127.0.0.1:{canaries[0].port}", function="g", private=False)
    with pytest.raises(PermissionDenied, match="private"):
        egress.request(url, function="g")
    egress.rules.deny("f")
    with pytest.raises(PermissionDenied, match="may not call"):
        egress.request(f"{url}/open")
    assert canaries[0].connections == 1


def test_proxies_of_the_environment_are_not_used(
    egress: Egress, canaries: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.2:{canaries[1].port}")
    egress.allow(f"127.0.0.1:{canaries[0].port}")
    assert egress.request(f"http://127.0.0.1:{canaries[0].port}/").status == 200
    assert (canaries[0].connections, canaries[1].connections) == (1, 0)


# -- what any URL must hold to ------------------------------------------------------------------------

_PIECES = st.one_of(
    st.sampled_from(["http://", "https://", "127.0.0.1", "good.example", "::1", "0x7f", "017", "80", "xn--", "bücher"]),
    st.sampled_from(["@", ":", "/", "\\", "#", "?", "%00", "%2e", ".", "..", "[", "]", "-", "_", "*", "{{secret:A}}"]),
    st.sampled_from(["。", "\t", " ", "é", "٣"]),
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(_PIECES, max_size=8).map("".join), st.text(max_size=40).map(lambda rest: f"http://{rest}")))
def test_a_url_has_one_meaning_or_none(text: str) -> None:
    try:
        parsed = parse_url(text)
    except InvalidArgument:
        return
    again = parse_url(str(parsed.url))
    assert (again.origin, again.path) == (parsed.origin, parsed.path)
    assert parsed.host.isascii()
    assert parsed.host == parsed.host.lower()
    assert not set(parsed.host) & set("@/\\?#% ")
    assert parsed.url.userinfo == b""
    assert 0 < parsed.port < 65536
    assert parsed.url.raw_host.decode() == parsed.host


@settings(max_examples=200, deadline=None)
@given(st.lists(_PIECES, max_size=6).map("".join), st.booleans())
def test_a_rule_is_read_back_as_it_is_written(text: str, private: bool) -> None:
    try:
        rule = parse_rule(text, private=private)
    except InvalidArgument:
        return
    assert parse_rule(rule.text, private=private) == rule

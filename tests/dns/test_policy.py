"""What is not answered: blocked names, and private addresses for names of the world outside."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from dns.edns import EDECode
from dns.rcode import Rcode
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InvalidArgument, PermissionDenied
from taskworker.outbound.addresses import is_public
from taskworker.outbound.dns.policy import Policy, read_block_list
from tests.dns.conftest import Serve, Served

PRIVATE = [
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),  # RFC 1918
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3"),
    *("169.254.169.254", "100.64.0.1", "100.127.255.255", "198.18.0.1", "192.0.2.1"),
    *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.1.2.3", "::127.0.0.1", "::ffff:0:10.0.0.1"),  # mapped, compatible, translated
    *("64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1"),  # NAT64, 6to4
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2",),  # Teredo
    *("2001:4860::5efe:10.0.0.1", "2001:4860::200:5efe:169.254.169.254"),  # ISATAP
    *("168.63.129.16", "192.0.0.192", "192.88.99.1", "3fff::1", "2620:4f:8000::1"),  # metadata servers, nobody's
]
PUBLIC = [
    *("8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.167.0.1", "198.41.0.4"),
    *("2001:4860:4860::8888", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
]


@pytest.mark.parametrize("text", PRIVATE)
def test_private(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public(text: str) -> None:
    assert is_public(ip_address(text))


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_embedded_address_is_what_it_is_bare(bare: IPv4Address) -> None:
    for prefix, shift in (("::ffff:0:0", 0), ("64:ff9b::", 0), ("2002::", 80)):
        assert is_public(IPv6Address(int(IPv6Address(prefix)) | int(bare) << shift)) == is_public(bare)


@pytest.mark.parametrize("text", PRIVATE)
def test_an_outside_name_does_not_become_a_private_address(served: Served, text: str) -> None:
    kind = "AAAA" if ":" in text else "A"
    public = "2606:4700::1" if ":" in text else "198.41.0.4"
    served.outside.set(f"evil.example 100 {kind} {public}", f"evil.example 100 {kind} {text}")
    served.outside.set("hop.example 100 CNAME evil.example.")
    for name in ("evil.example", "hop.example"):
        response = served.query(name, kind, use_edns=0)
        assert (response.rcode(), response.answer) == (Rcode.REFUSED, [])
        assert [option.code for option in response.options if hasattr(option, "code")] == [EDECode.FILTERED]
    with pytest.raises(PermissionDenied, match=r"not public; --dns-allow-private evil\.example allows it"):
        served.names.resolve("evil.example", kind)


def test_hints_of_https_records_are_looked_at(served: Served) -> None:
    served.outside.set("evil.example 100 HTTPS 1 . alpn=h2 ipv4hint=198.41.0.4,10.0.0.1")
    served.outside.set("good.example 100 HTTPS 1 . alpn=h2 ipv4hint=198.41.0.4 ipv6hint=2606:4700::1")
    assert served.query("evil.example", "HTTPS").rcode() == Rcode.REFUSED
    assert served.query("good.example", "HTTPS").answer


def test_names_that_are_allowed_to_be_private(serve: Serve) -> None:
    served = serve(policy=Policy(private_allowed=["corp.example"]))
    served.outside.set("db.corp.example 100 A 10.0.0.7", "corp.example 100 A 10.0.0.8", "xcorp.example 100 A 10.0.0.9")
    assert served.texts("db.corp.example") == ["10.0.0.7"]
    assert served.texts("CORP.example") == ["10.0.0.8"]
    assert served.query("xcorp.example").rcode() == Rcode.REFUSED


def test_a_dot_in_a_label_is_no_end_of_one(serve: Serve) -> None:
    served = serve(policy=Policy(["ads.example"], private_allowed=["corp.example", "straße.example"]))
    served.outside.set(r"a\.corp.example 100 A 10.0.0.7", r"corp\.example 100 A 10.0.0.7")
    served.outside.set("xn--strae-oqa.example 100 A 10.0.0.7", "strasse.example 100 A 10.0.0.7")
    for name in (r"a\.corp.example", r"corp\.example", "strasse.example"):
        assert served.query(name).rcode() == Rcode.REFUSED
    assert served.query(r"ads\.example").answer == []
    assert served.outside.asked[r"ads\.example", "A"] == 1
    assert served.names.resolve("straße.example").records == ("10.0.0.7",)


def test_blocked_names_do_not_exist_and_are_not_asked_for(serve: Serve) -> None:
    served = serve(policy=Policy(["ads.example", "Tracker.Example."]))
    served.outside.set("ads.example 100 A 198.41.0.4", "hop.example 100 CNAME cdn.tracker.example.")
    served.outside.set("cdn.tracker.example 100 A 198.41.0.5", "bads.example 100 A 198.41.0.6")
    for name in ("ads.example", "a.b.ADS.example", "tracker.example"):
        response = served.query(name, use_edns=0)
        assert (response.rcode(), response.answer) == (Rcode.NXDOMAIN, [])
        assert [option.code for option in response.options if hasattr(option, "code")] == [EDECode.BLOCKED]
    assert not served.outside.asked
    assert served.query("hop.example").rcode() == Rcode.NXDOMAIN  # behind an alias as well
    assert served.texts("bads.example") == ["198.41.0.6"]
    with pytest.raises(PermissionDenied, match=r"ads\.example is blocked by this pool's block list"):
        served.names.resolve("ads.example")


def test_block_lists_come_in_two_forms(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("# ads\nads.example  # the worst\n\n0.0.0.0 one.example two.example\n127.0.0.1 localhost\n")
    assert read_block_list(path) == ["ads.example.", "one.example.", "two.example."]


def test_a_block_list_that_is_none_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("ads.example\na..b\n")
    with pytest.raises(InvalidArgument, match=r"line 2: 'a\.\.b' is no domain name"):
        read_block_list(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_block_list(path)
    with pytest.raises(InvalidArgument, match="is no domain name"):
        Policy(private_allowed=["."])

"""Tickets: who can make one, for whom and for how long it is good, and what else is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import assume, given
from hypothesis import strategies as st

from storage.clocks import wall_ms
from taskworker.auth.authority import Authority
from taskworker.auth.certificates import KeyPair, read_key
from taskworker.auth.tickets import VALID_S, TicketChecker, TicketIssuer
from taskworker.errors import TicketRefused
from tests.auth.members import POOL, Members, pool, worker

OBJECTS = [bytes([seed]) * 32 for seed in (1, 2)]
W1 = worker("w1").dns_name


def issued(authority: Authority, *workers: str, now_ms: Callable[[], int] = wall_ms) -> bytes:
    return TicketIssuer(lambda: authority, now_ms).issue("alice", workers or [W1], 4, 6, OBJECTS, 1000)


def checker(authority: Authority, name: str = "w1", now_ms: Callable[[], int] = wall_ms) -> TicketChecker:
    return TicketChecker(worker(name), lambda: authority.certificates_pem, now_ms)


@contextmanager
def refused(why: str) -> Iterator[None]:
    with pytest.raises(TicketRefused, match=why):
        yield


def test_a_ticket_says_what_may_be_read_and_not_for_whom(authority: Authority) -> None:
    raw = issued(authority)
    ticket = checker(authority).check(raw)
    assert (ticket.k, ticket.n, ticket.bytes_max, ticket.objects) == (4, 6, 1000, frozenset(OBJECTS))
    assert ticket.expires_ms - ticket.issued_ms == VALID_S * 1000
    assert b"alice" not in raw
    with refused("other workers"):
        checker(authority, "w2").check(raw)


def test_a_ticket_is_good_for_some_minutes_whatever_clocks_say(authority: Authority) -> None:
    now = [wall_ms()]
    raw = issued(authority, now_ms=lambda: now[0])
    check = checker(authority, now_ms=lambda: now[0]).check
    check(raw)
    now[0] += int(VALID_S * 1000) + 1
    for _ in range(2):  # also once it was checked
        with refused("expired"):
            check(raw)
    now[0] -= int(VALID_S * 1000) + 250_000  # a worker's clock may be slow
    check(raw)
    now[0] -= 100_000
    with refused("not valid yet"):
        check(raw)


def test_no_two_tickets_are_equal_whatever_clocks_say(authority: Authority) -> None:
    """As workers count what was read with each."""
    now = [wall_ms()]
    issuer = TicketIssuer(lambda: authority, lambda: now[0])
    check = checker(authority, now_ms=lambda: now[0]).check
    tickets = [check(issuer.issue("alice", [W1], 4, 6, OBJECTS, 1000)) for _ in range(5)]
    assert len({ticket.digest for ticket in tickets}) == 5
    now[0] -= 3_600_000
    ticket = check(issuer.issue("alice", [W1], 4, 6, OBJECTS, 1000))
    assert ticket.issued_ms == now[0]


def test_no_two_tickets_are_equal_however_many_are_issued(authority: Authority) -> None:
    start_ms, calls = wall_ms(), itertools.count()
    issuer = TicketIssuer(lambda: authority, lambda: start_ms + next(calls) // 4)
    check = checker(authority, now_ms=lambda: start_ms).check
    tickets = [check(issuer.issue("alice", [W1], 4, 6, OBJECTS, 1000)) for _ in range(2500)]
    assert len({ticket.digest for ticket in tickets}) == 2500
    assert {ticket.expires_ms - ticket.issued_ms for ticket in tickets} == {int(VALID_S * 1000)}


def test_neither_another_pool_nor_a_worker_can_issue_tickets(authority: Authority, tmp_path: Path) -> None:
    check = checker(authority).check
    with refused("does not vouch"):
        check(issued(Authority(tmp_path / "same-id.pem", POOL)))
    with refused("only the pool may"):
        check(issued(Authority(tmp_path / "other.pem", "1b" * 16)))
    thief = authority.issue_own(worker("w1"))
    with refused("worker 'w1'; only the pool may"):
        check(resigned(issued(authority), thief))
    own = authority.issue_own(pool())
    check(resigned(issued(authority), own))
    with refused("not signed by this pool"):
        check(resigned(issued(authority), own._replace(key_pem=thief.key_pem)))
    with refused("does not know yet"):
        TicketChecker(worker("w1"), lambda: b"").check(issued(authority))


def resigned(raw: bytes, pair: KeyPair, change: Callable[[list[object]], None] = lambda body: None) -> bytes:
    """A ticket with the same body, or another one, and another signature."""
    body = msgspec.msgpack.decode(msgspec.msgpack.decode(raw)[0])
    change(body)
    packed = msgspec.msgpack.encode(body)
    signature = read_key(pair.key_pem).sign(b"TaskWorker ticket\0" + packed, ec.ECDSA(hashes.SHA256()))
    certificate = pair.certificate.public_bytes(serialization.Encoding.DER)
    return msgspec.msgpack.encode([packed, signature, certificate])


def test_a_ticket_cannot_be_widened(authority: Authority) -> None:
    signed = msgspec.msgpack.decode(issued(authority))
    body = msgspec.msgpack.decode(signed[0])
    for at, wider in ((3, [W1, "x"]), (4, 1), (6, body[6] + bytes(32)), (7, 10**9), (9, body[9] + 60_000)):
        changed = msgspec.msgpack.encode([*body[:at], wider, *body[at + 1 :]])
        with refused("was changed"):
            checker(authority).check(msgspec.msgpack.encode([changed, *signed[1:]]))


def test_what_the_pool_would_not_sign_is_refused_also_when_signed(authority: Authority) -> None:
    raw, own = issued(authority), authority.issue_own(pool())
    for at, wrong in ((0, 2), (1, "1b" * 16), (3, []), (4, 7), (6, b""), (6, bytes(33)), (6, bytes(257 * 32)), (7, -1)):

        def change(body: list[object], at: int = at, wrong: object = wrong) -> None:
            body[at] = wrong

        with refused("malformed|another pool"):
            checker(authority).check(resigned(raw, own, change))

    def last_for_ever(body: list[object]) -> None:
        body[9] = 1 << 52

    ticket = checker(authority).check(resigned(raw, own, last_for_ever))
    assert ticket.expires_ms == ticket.issued_ms + VALID_S * 1000


def test_tickets_are_accepted_while_the_authority_is_replaced(authority: Authority) -> None:
    issuer = TicketIssuer(lambda: authority)
    before = authority.certificates_pem
    knows_former = TicketChecker(worker("w1"), lambda: before)
    knows_all = checker(authority)

    def ticket() -> bytes:
        return issuer.issue("alice", [W1], 4, 6, OBJECTS, 1000)

    for step in (authority.add_next, authority.promote):
        step()
        knows_former.check(ticket())
        knows_all.check(ticket())
    former = ticket()
    authority.drop_former()
    knows_all.check(ticket())
    with refused("does not vouch"):
        knows_all.check(former)


@given(flips=st.dictionaries(st.floats(0, 1, exclude_max=True), st.integers(1, 255), min_size=1, max_size=3))
def test_damaged_tickets_are_refused_by_name(members_once: Members, sound: bytes, flips: dict[float, int]) -> None:
    raw = bytearray(sound)
    for at, flip in flips.items():
        raw[int(at * len(raw))] ^= flip
    assume(raw != sound)
    with pytest.raises(TicketRefused):
        checker(members_once.authority).check(bytes(raw))


@given(part=st.floats(0, 1, exclude_max=True))
def test_a_part_of_a_ticket_is_none(members_once: Members, sound: bytes, part: float) -> None:
    with pytest.raises(TicketRefused):
        checker(members_once.authority).check(sound[: int(part * len(sound))])


@given(st.binary(max_size=300))
def test_noise_is_no_ticket(members_once: Members, noise: bytes) -> None:
    with pytest.raises(TicketRefused):
        checker(members_once.authority).check(noise)


def test_a_huge_ticket_is_not_read(authority: Authority) -> None:
    with refused("at most"):
        checker(authority).check(bytes(10**6))


@pytest.fixture(scope="module")
def members_once(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return Members.in_directory(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def sound(members_once: Members) -> bytes:
    return issued(members_once.authority)


def test_a_certificate_of_another_version_is_malformed(authority: Authority) -> None:
    """The library has errors of its own for those, which are none of a wrong value."""
    envelope = msgspec.msgpack.decode(issued(authority))
    body, signature, certificate = envelope
    version = bytes.fromhex("a003020102")  # [0] INTEGER 2, which is version 3
    assert certificate.count(version) == 1
    with refused("malformed"):
        checker(authority).check(
            msgspec.msgpack.encode([body, signature, certificate.replace(version, bytes.fromhex("a003020105"))])
        )

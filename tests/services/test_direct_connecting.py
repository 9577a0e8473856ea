"""What clients connect to when they read from workers, and when they try again what failed."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator
from concurrent.futures import Future, wait
from functools import partial

import pytest

from storage.keys import Kind, stripe_key
from taskworker.client.direct import reads
from taskworker.client.direct.page import Holder, Page
from taskworker.client.direct.reads import DirectReads
from tests.auth.members import Members


def await_all(futures: Collection[Future[None]], within_s: float) -> None:
    """Wait as a get does that has no deadline."""
    wait(futures, within_s)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def direct(clock: Clock) -> Iterator[DirectReads]:
    direct = DirectReads(clock)
    yield direct
    direct.close()


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return Members.in_directory(tmp_path_factory.mktemp("authority"))


def page_at(address: str, name: str = "", authorities: bytes = b"") -> Page:
    """A page of one chunk, which a worker has whole."""
    return Page(
        first=0,
        stripes=[stripe_key(Kind.CHUNK, bytes(32), 1, 1)],
        lengths=[100],
        keys=None,
        holders=[Holder(address, name)],
        placed=[(0,)],
        ticket=b"ticket",
        valid_s=300.0,
        authorities=authorities,
    )


def test_after_any_number_of_failures_direct_reads_are_tried_again(direct: DirectReads, clock: Clock) -> None:
    for note_failed in (direct.note_pool_failed, partial(direct.note_failed, "file")):
        for _ in range(1100):
            before = direct.may_read("file")
            note_failed()
            assert (before, direct.may_read("file")) == (True, False)
            clock.now_s += 900


def test_one_outage_is_one_failure_for_all_gets_under_way(direct: DirectReads, clock: Clock) -> None:
    for _ in range(10):
        direct.note_pool_failed()
        direct.note_failed("file")
    clock.now_s += 60
    assert direct.may_read("file")


def test_the_failure_of_a_file_is_that_of_no_other(direct: DirectReads) -> None:
    direct.note_failed("file")
    assert [direct.may_read(file) for file in ("file", "other")] == [False, True]
    for number in range(5000):
        direct.note_failed(str(number))
    assert direct.may_read("file")  # few are remembered


def test_direct_reads_that_were_given_up_stay_so(direct: DirectReads, clock: Clock) -> None:
    direct.never()
    direct.note_pool_failed()
    direct.note_worked("file")
    clock.now_s += 1e9
    assert not direct.may_read("file")


@pytest.mark.parametrize(
    "address", ["127.evil.example.org:80", "localhost.evil.example.org:80", "192.0.2.1:80", "example.org:80"]
)
def test_nothing_is_sent_in_the_clear_to_other_machines(
    direct: DirectReads, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(reads, "dial", lambda address, _within_s: asked.append(address))
    assert not direct.fleet.enter(page_at(address), await_all)
    assert not asked


@pytest.mark.parametrize("name", ["a..b", "", "x" * 300])
def test_names_that_no_certificate_can_have_are_nobodys(direct: DirectReads, members: Members, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert not direct.fleet.enter(page_at(address, name, members.authority.certificates_pem), await_all)


@pytest.mark.parametrize("address", ["127..1:5", "localhost..x:5", "x" * 300 + ":5", "nowhere"])
def test_addresses_that_are_none_are_nobodys(direct: DirectReads, members: Members, address: str) -> None:
    assert not direct.fleet.enter(page_at(address, "w1", members.authority.certificates_pem), await_all)


def test_authorities_that_are_none_vouch_for_nobody(direct: DirectReads) -> None:
    for authorities in (b"no certificate", b"\xff"):
        assert not direct.fleet.enter(page_at("127.0.0.1:1", "w1", authorities), await_all)

"""Direct reads on a machine that has no thread for the moment: what was refused is not done later."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from storage.errors import StoreUnavailable
from storage.keys import shard_key
from taskworker.auth.tickets import TicketIssuer
from taskworker.client.deadline import Deadline
from taskworker.client.direct.fleet import TicketedFleet
from taskworker.client.direct.page import Holder, Holders
from taskworker.client.direct.reader import Reader, reading
from taskworker.client.direct.volume import WorkerVolume
from taskworker.transport.fetches import Outcome
from taskworker.transport.shard_calls import NotAnswered
from taskworker.transport.ticketed_volume import Granted
from tests.auth.members import Members, worker
from tests.scarce_threads import Busy
from tests.services.proxy import Proxy
from tests.services.test_direct_readers import CONTENT, STRIPE, WAIT_S, page, served_content

FETCHED = len(CONTENT)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    busy = Busy(monkeypatch)
    yield busy
    busy.end()


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members.in_directory(tmp_path / "authority")


@pytest.fixture
def address(members: Members, tmp_path: Path) -> Iterator[str]:
    with served_content(members, tmp_path) as address:
        yield address


class Fetch:
    """A fetch of the content into memory of its own."""

    def __init__(self, volume: WorkerVolume, reader: Reader, ticket: bytes) -> None:
        self.memory = bytearray(FETCHED)
        self._ended = threading.Event()
        self._outcome: Outcome = ()
        with reading(reader, {STRIPE: Granted(FETCHED, ticket, (0,))}):
            volume.begin_fetch([(shard_key(STRIPE, 0), FETCHED)], [memoryview(self.memory)], self._note)

    def _note(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._ended.set()

    def outcome(self) -> Outcome:
        assert self._ended.wait(WAIT_S)
        return self._outcome


def test_a_fetch_that_got_no_thread_to_be_repeated_writes_nothing_later(
    busy: Busy, members: Members, address: str
) -> None:
    name = worker("w1").dns_name
    ticket = TicketIssuer(lambda: members.authority).issue("ann", [name], 1, 1, [blake3(CONTENT).digest()], 9 * FETCHED)
    reader = Reader(Deadline(None))
    with Proxy(address) as proxy:
        volume = WorkerVolume(proxy.address, "w1", 0, busy.executor, timeout_s=WAIT_S)
        volume.connect()
        assert Fetch(volume, reader, ticket).outcome() == [True]
        with busy.no_threads():
            proxy.cut_after_sent(1)
            lost = Fetch(volume, reader, ticket)
            assert isinstance(lost.outcome(), NotAnswered)
        lost.memory[:] = bytes(FETCHED)
        busy.let_go()
        assert Fetch(volume, reader, ticket).outcome() == [True]  # behind whatever was asked for before
        assert lost.memory == bytes(FETCHED)
        volume.close()


def test_a_worker_that_got_no_thread_to_be_connected_is_connected_by_the_next_get(busy: Busy, address: str) -> None:
    made: list[WorkerVolume] = []

    def connect(holder: Holder, slot: int, _page: Holders) -> WorkerVolume:
        made.append(WorkerVolume(holder.address, "w1", slot, busy.executor, timeout_s=WAIT_S))
        return made[-1]

    fleet = TicketedFleet(connect, busy.executor)
    reader, there = Reader(Deadline(None)), page(address, b"ticket")
    with busy.no_threads(), pytest.raises(StoreUnavailable, match="no more threads now"):
        fleet.enter(there, reader.await_all)
    busy.let_go()
    assert not made
    assert fleet.enter(there, reader.await_all) is not None
    fleet.close()

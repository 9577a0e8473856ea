"""Gets that read from workers at the same time, and ones that end before the workers have answered."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from blake3 import blake3

from storage import ErasureProfile
from storage.errors import StorageError
from storage.keys import Kind, ShardKey, shard_key, slot_of, stripe_key
from storage.shards import Shard
from storage.stripes.encoding import Encoder
from taskworker import Client
from taskworker.apps.pool_server import PoolServer
from taskworker.auth.tickets import TicketIssuer
from taskworker.client.deadline import Deadline
from taskworker.client.direct import fleet, reads
from taskworker.client.direct.page import Holder, Page
from taskworker.client.direct.reader import Reader
from taskworker.client.direct.reads import DirectReads
from taskworker.client.direct.volume import WorkerVolume
from taskworker.client.scope import CallScope, current_scope
from taskworker.errors import CallAbandoned, DeadlineExceeded
from taskworker.pool.options import PoolOptions
from taskworker.protos import store_pb2
from taskworker.worker.clients_port import ClientsPort
from tests.auth.members import POOL, Members, worker
from tests.pool.helpers import open_volume
from tests.services.proxy import Proxy
from tests.services.test_direct_reads import Counted, Ending, await_members
from tests.transport.peers import Peer
from tests.transport.peers import worker as silent_worker

WAIT_S = 60.0
FOREVER_S = 3600.0
FOREVER_BYTES = 1 << 40
CONTENT = os.urandom(100_000)
STRIPE = stripe_key(Kind.CHUNK, blake3(CONTENT).digest(), 1, 1)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have more time than any test."""
    for module, limit in ((reads, "_SILENT_S"), (reads, "CONNECT_S"), (fleet, "CONNECT_S")):
        monkeypatch.setattr(module, limit, FOREVER_S)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return Members.in_directory(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def direct() -> Iterator[DirectReads]:
    direct = DirectReads()
    yield direct
    direct.close()


@contextmanager
def served(members: Members, directory: Path, shards: Sequence[Shard]) -> Iterator[str]:
    """Where a worker serves clients that has these shards, without TLS."""
    volume = open_volume(directory / "volume")
    volume.append(shards)
    port = ClientsPort("w1", lambda: (volume, "i1"), None)
    port.trust(members.authority.certificates_pem)
    port.start("127.0.0.1:0", POOL, 0)
    try:
        yield port.address
    finally:
        port.stop(0.0)
        volume.close()


@contextmanager
def served_content(members: Members, directory: Path) -> Iterator[str]:
    """Where a worker serves clients that has the content, without TLS."""
    shard = Shard(shard_key(STRIPE, 0), len(CONTENT), blake3(CONTENT).digest(), CONTENT)
    with served(members, directory, [shard]) as address:
        yield address


@pytest.fixture
def address(members: Members, tmp_path: Path) -> Iterator[str]:
    with served_content(members, tmp_path) as address:
        yield address


class Silent(NamedTuple):
    """Where nobody says anything, and whether somebody was there."""

    address: str
    was_called: threading.Event


@pytest.fixture
def silent() -> Iterator[Silent]:
    was_called = threading.Event()

    def hear(peer: Peer) -> None:
        peer.socket.settimeout(None)
        peer.take(1)
        was_called.set()
        peer.take(FOREVER_BYTES)

    with silent_worker(hear) as address:
        yield Silent(address, was_called)
        assert was_called.wait(WAIT_S)


def page(address: str, ticket: bytes, authorities: bytes = b"") -> Page:
    name = worker("w1").dns_name
    return Page(0, [STRIPE], [len(CONTENT)], None, [Holder(address, name)], [(0,)], ticket, 300.0, authorities)


def in_time(work: Callable[[], Any]) -> Any:
    """What a call returns that does not wait for workers."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(timeout=WAIT_S)


def test_each_get_reads_with_a_ticket_of_its_own(direct: DirectReads, members: Members, address: str) -> None:
    """Though others, which began later, have tickets for the same chunks, and have used them up."""
    issuer = TicketIssuer(lambda: members.authority)
    getting = []
    for _ in range(3):
        ticket = issuer.issue("ann", [worker("w1").dns_name], 1, 1, [blake3(CONTENT).digest()], len(CONTENT))
        reader = Reader(Deadline(None))
        entered = direct.fleet.enter(page(address, ticket), reader.await_all)
        assert entered is not None
        getting.append((reader, entered))
    for reader, entered in getting:
        target = bytearray(len(CONTENT))
        direct.submit(direct.read, reader, entered, 0, [memoryview(target)]).result(timeout=WAIT_S)
        assert target == CONTENT
    with pytest.raises(StorageError):  # a ticket was for this much
        direct.read(*getting[0], 0, [memoryview(bytearray(len(CONTENT)))])


def test_shards_that_nobody_has_are_not_waited_for(
    direct: DirectReads, members: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is needed of a worker is asked for at once, parity included."""
    asked: list[list[int]] = []
    fetch = WorkerVolume.begin_fetch

    def begin_fetch(self: WorkerVolume, wanted: Sequence[tuple[ShardKey, int]], *others: Any) -> Any:
        asked.append([slot_of(key) for key, _ in wanted])
        return fetch(self, wanted, *others)

    monkeypatch.setattr(WorkerVolume, "begin_fetch", begin_fetch)
    stripe = stripe_key(Kind.CHUNK, blake3(CONTENT).digest(), 2, 4)
    shards = Encoder().shards_of(stripe, CONTENT, len(CONTENT))
    with served(members, tmp_path, shards[1:]) as address:
        issuer = TicketIssuer(lambda: members.authority)
        ticket = issuer.issue("ann", [worker("w1").dns_name], 2, 4, [blake3(CONTENT).digest()], 2 * len(CONTENT))
        there = page(address, ticket)._replace(stripes=[stripe], placed=[(None, 0, 0, 0)])
        reader, target = Reader(Deadline(None)), bytearray(len(CONTENT))
        entered = direct.fleet.enter(there, reader.await_all)
        assert entered is not None
        direct.read(reader, entered, 0, [memoryview(target)])
    assert target == CONTENT
    assert asked == [[1, 2]]


def test_a_get_lets_go_of_its_memory_at_its_end(direct: DirectReads, members: Members, address: str) -> None:
    """It need not wait for a garbage collection, before which other gets would take more."""
    issuer = TicketIssuer(lambda: members.authority)
    ticket = issuer.issue("ann", [worker("w1").dns_name], 1, 1, [blake3(CONTENT).digest()], len(CONTENT))
    reader, target = Reader(Deadline(None)), bytearray(len(CONTENT))
    entered = direct.fleet.enter(page(address, ticket), reader.await_all)
    assert entered is not None
    gc.disable()
    try:
        direct.submit(direct.read, reader, entered, 0, [memoryview(target)]).result(timeout=WAIT_S)
        give_up = time.monotonic() + WAIT_S
        while _is_referred_to(target):  # the threads may not have come to the end of their functions
            assert time.monotonic() < give_up
            time.sleep(0.01)
    finally:
        gc.enable()


def _is_referred_to(target: bytearray) -> bool:
    """Whether there are views of this memory, which cannot be made longer then."""
    try:
        target.append(0)
    except BufferError:
        return True
    return False


def test_a_worker_that_closes_a_kept_connection_is_asked_again(
    direct: DirectReads, members: Members, address: str
) -> None:
    issuer = TicketIssuer(lambda: members.authority)
    ticket = issuer.issue("ann", [worker("w1").dns_name], 1, 1, [blake3(CONTENT).digest()], 9 * len(CONTENT))
    reader, target = Reader(Deadline(None)), bytearray(len(CONTENT))
    with Proxy(address) as proxy:
        entered = direct.fleet.enter(page(proxy.address, ticket), reader.await_all)
        assert entered is not None
        for _ in range(3):
            target[:] = bytes(len(CONTENT))
            direct.submit(direct.read, reader, entered, 0, [memoryview(target)]).result(timeout=WAIT_S)
            assert target == CONTENT
            proxy.cut_after_sent(1)  # when the next request has been sent, so that it is not answered
        assert direct.fleet.reaches_any(entered.page)


def test_nobody_waits_while_another_get_connects(
    direct: DirectReads, members: Members, address: str, silent: Silent
) -> None:
    waits, ends = threading.Event(), threading.Event()

    def await_all(_futures: Collection[Future[None]], _within_s: float) -> None:
        waits.set()
        assert ends.wait(WAIT_S)

    with ThreadPoolExecutor(1) as threads:
        other = page(silent.address, b"ticket", members.authority.certificates_pem)
        entering = threads.submit(direct.fleet.enter, other, await_all)
        assert waits.wait(WAIT_S)
        try:
            assert in_time(lambda: direct.fleet.enter(page(address, b"ticket"), Reader(Deadline(None)).await_all))
        finally:
            ends.set()
        assert entering.result() is None


def test_connecting_ends_at_the_deadline_and_when_it_is_given_up(
    direct: DirectReads, members: Members, silent: Silent
) -> None:
    there = page(silent.address, b"ticket", members.authority.certificates_pem)
    assert in_time(lambda: direct.fleet.enter(there, Reader(Deadline(0.1)).await_all)) is None
    reader = Reader(Deadline(None))
    threading.Timer(0.1, reader.give_up).start()
    assert in_time(lambda: direct.fleet.enter(there, reader.await_all)) is None


class Processes:
    """A pool of 2-of-3 without encryption or TLS, with workers in processes of their own, and a client of it."""

    def __init__(self, directory: Path) -> None:
        self._server = PoolServer(directory, profile=ErasureProfile(2, 3), options=PoolOptions(encrypts=False))
        address = f"127.0.0.1:{self._server.start('127.0.0.1:0')}"
        self.workers = [_worker_process(directory / f"w{number}", address) for number in range(3)]
        await_members(self._server, 3)
        self.reading = Counted(Client(address))
        self.content = os.urandom(34 << 20)  # three pages
        pushed = self.reading.client.push(self.content, user_id="ann", filename="a", chunk_size=64 << 10)
        self.file = pushed.file_id

    def await_pages(self) -> None:
        """Wait until the pool lets the file be read from workers."""
        give_up = time.monotonic() + WAIT_S
        request = store_pb2.LocateShardsRequest(file_id=self.file, user_id="ann")
        while not self.reading.client._channel.store.LocateShards(request).HasField("page"):
            assert time.monotonic() < give_up
            time.sleep(0.1)

    def close(self) -> None:
        self.reading.client.close()
        for process in self.workers:
            process.kill()
            process.wait()
        self._server.stop(0.0)


def _worker_process(directory: Path, pool: str) -> subprocess.Popen[bytes]:
    options = ["--no-functions", "--scrub-rate", "0", "--listen", "127.0.0.1:0", "--capacity", "1000"]
    command = ["worker", "--pool", pool, "--id", directory.name, "--dir", str(directory), *options]
    return subprocess.Popen([sys.executable, "-m", "taskworker", *command], stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    pool = Processes(tmp_path_factory.mktemp("pool"))
    yield pool
    pool.close()


def test_workers_that_are_killed_meanwhile_are_not_missed(pool: Processes) -> None:
    target = Ending(pool.workers[0].kill)
    pool.reading.client.download(pool.file, target, user_id="ann")
    assert target.getvalue() == pool.content
    assert pool.reading.through_pool == 0


@contextmanager
def frozen(pool: Processes) -> Iterator[Callable[[], None]]:
    """What stops the workers' processes, which go on afterwards."""

    def freeze() -> None:
        for process in pool.workers:
            process.send_signal(signal.SIGSTOP)

    try:
        yield freeze
    finally:
        for process in pool.workers:
            process.send_signal(signal.SIGCONT)
        pool.await_pages()


def test_a_get_ends_at_its_deadline_though_workers_are_silent(pool: Processes) -> None:
    client = pool.reading.client
    with frozen(pool) as freeze, pytest.raises(DeadlineExceeded):
        in_time(lambda: client.download(pool.file, Ending(freeze), user_id="ann", timeout_s=3.0))
    assert client.get(pool.file, user_id="ann") == pool.content
    assert pool.reading.through_pool == 0


def test_a_get_ends_when_it_is_cancelled_though_workers_are_silent(pool: Processes) -> None:
    scope = CallScope()

    def get() -> None:
        current_scope.set(scope)
        pool.reading.client.download(pool.file, Ending(freeze_and_cancel), user_id="ann")

    def freeze_and_cancel() -> None:
        freeze()
        threading.Timer(1.0, scope.cancel).start()

    with frozen(pool) as freeze, pytest.raises(CallAbandoned):
        in_time(get)
    assert pool.reading.through_pool == 0

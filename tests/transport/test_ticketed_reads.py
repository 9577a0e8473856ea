"""What clients with tickets can do at a worker's port for them, and what those without cannot."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import StorageError
from storage.keys import ShardKey, StripeKey, object_id_of, stripe_of
from storage.shards import LocalVolume, VolumeFailed, VolumeUnavailable
from taskworker.auth.tickets import TicketIssuer
from taskworker.auth.tls import trusting_context
from taskworker.transport.frames import TAKING_BYTES_MAX, Call, Wanted, pack_taking, parse_taking
from taskworker.transport.member_dialling import MemberDialling
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.ticketed_reads import CLIENTS_LIMITS
from taskworker.transport.ticketed_volume import Granted, TicketedVolume
from taskworker.transport.wire.framing import Kind as FrameKind
from taskworker.transport.wire.framing import pack_greeting
from taskworker.transport.wire.secure import dial_secure
from taskworker.transport.wire.streams import Dial
from taskworker.transport.wire.streams import dial as dial_plainly
from taskworker.worker.clients_port import ClientsPort
from tests.auth.members import POOL, Members, worker
from tests.pool.helpers import key_of, open_volume, served, shard_of
from tests.transport.peers import Peer, call, greeted
from tests.transport.peers import worker as peers_worker

SIZE = 50_000


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return Members.in_directory(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LocalVolume]:
    volume = open_volume(tmp_path / "volume")
    volume.append([shard_of(seed, SIZE) for seed in range(3)])
    yield volume
    volume.close()


@contextmanager
def offered(volume: LocalVolume, members: Members, *, plain: bool = False) -> Iterator[str]:
    """The address at which a worker of the pool serves clients."""
    port = ClientsPort("w1", lambda: (volume, "i1"), None if plain else members.worker)
    port.trust(members.authority.certificates_pem)
    port.start("127.0.0.1:0", POOL, 0)
    try:
        yield port.address
    finally:
        port.stop(0.0)


def dial_of(members: Members, name: str = "w1") -> Dial:
    """How a client connects to a worker."""
    return partial(
        dial_secure,
        context=trusting_context(members.authority.certificates_pem),
        server_name=worker(name).dns_name,
        authorize=lambda certificate: None,
    )


def ticket_for(members: Members, *keys: ShardKey, bytes_max: int = 10 * SIZE) -> bytes:
    ids = [object_id_of(key) for key in keys]
    return TicketIssuer(lambda: members.authority).issue("alice", [worker("w1").dns_name], 4, 6, ids, bytes_max)


@contextmanager
def seen(address: str, ticket: bytes, *keys: ShardKey, dial: Dial = dial_plainly) -> Iterator[TicketedVolume]:
    """The worker's volume as a client sees it that believes to have a ticket for these shards."""
    granted = {stripe_of(key): Granted(4 * SIZE, ticket, (0,) * 6) for key in keys}

    def find(stripe: StripeKey) -> Granted | None:
        return granted.get(stripe)

    volume = TicketedVolume(address, "w1", 0, find, timeout_s=5.0, dial=dial)
    try:
        yield volume
    finally:
        volume.close()


@pytest.mark.parametrize("plain", [False, True])
def test_a_client_reads_what_its_ticket_names_and_nothing_else(
    members: Members, volume: LocalVolume, *, plain: bool
) -> None:
    dial = dial_plainly if plain else dial_of(members)
    named, other = key_of(0), key_of(1)
    ticket = ticket_for(members, named)
    with (
        offered(volume, members, plain=plain) as address,
        seen(address, ticket, named, other, dial=dial) as remote,
    ):
        assert remote.read(named) == shard_of(0, SIZE)
        with pytest.raises(VolumeUnavailable, match="does not name this shard"):
            remote.read(other)
        assert remote.read(named) == shard_of(0, SIZE)  # a refusal harms nobody


def test_shards_are_fetched_with_two_tickets_at_once(members: Members, volume: LocalVolume) -> None:
    keys = [key_of(seed) for seed in (0, 1, 7)]
    tickets = [ticket_for(members, keys[0]), ticket_for(members, keys[1], keys[2])]
    granted = {
        stripe_of(key): Granted(4 * SIZE, ticket, (0,) * 6)
        for key, ticket in zip(keys, (*tickets, tickets[1]), strict=True)
    }
    ended = queue.SimpleQueue[object]()
    with offered(volume, members) as address:
        remote = TicketedVolume(address, "w1", 0, granted.get, timeout_s=5.0, dial=dial_of(members))
        into = [memoryview(bytearray(SIZE)) for _ in keys]
        remote.begin_fetch([(key, SIZE) for key in keys], into, ended.put)
        assert ended.get(timeout=60) == [True, True, False]
        assert into[:2] == [shard_of(0, SIZE).payload, shard_of(1, SIZE).payload]
        remote.close()


def test_a_ticket_is_spent_when_its_bytes_were_read(members: Members, volume: LocalVolume) -> None:
    key = key_of(0)
    with (
        offered(volume, members) as address,
        seen(address, ticket_for(members, key, bytes_max=2 * SIZE), key, dial=dial_of(members)) as remote,
    ):
        for _ in range(2):
            assert remote.read(key) is not None
        with pytest.raises(VolumeUnavailable, match="ask for another one"):
            remote.read(key)


def test_a_ticket_that_is_written_in_another_way_has_no_bytes_of_its_own(members: Members, volume: LocalVolume) -> None:
    """The envelope around what was signed can be encoded in several ways."""
    key = key_of(0)
    ticket = ticket_for(members, key, bytes_max=2 * SIZE)
    again = b"\xdc\x00" + bytes([ticket[0] & 0x0F]) + ticket[1:]  # an array of the same length, in the longer form
    with (
        offered(volume, members) as address,
        seen(address, ticket, key, dial=dial_of(members)) as remote,
        seen(address, again, key, dial=dial_of(members)) as other,
    ):
        assert remote.read(key) is not None
        assert other.read(key) is not None
        with pytest.raises(VolumeUnavailable, match="ask for another one"):
            other.read(key)


def test_a_client_can_call_nothing_that_members_can(members: Members, volume: LocalVolume) -> None:
    with offered(volume, members) as address:
        for use in (
            lambda remote: remote.usage(),
            lambda remote: remote.fetch_all([(key_of(0), SIZE)]),
            lambda remote: remote.read(key_of(0)),
            lambda remote: list(remote.keys()),
            lambda remote: remote.remove([key_of(0)]),
            lambda remote: remote.start_sync([shard_of(9)]).wait(),
            lambda remote: remote.instance(),
        ):
            remote = RemoteVolume(address, "w1", dial=dial_of(members))
            with pytest.raises(VolumeFailed, match="no method"):
                use(remote)
            remote.abandon("the test is over")
    assert volume.read(key_of(0)) is not None
    assert volume.read(shard_of(9).key) is None


def test_the_port_of_members_takes_no_tickets(members: Members, volume: LocalVolume) -> None:
    key = key_of(0)
    with (
        served(volume, "i1", secure=MemberDialling(members.worker).accept) as address,
        seen(address, ticket_for(members, key), key, dial=dial_of(members)) as remote,
        pytest.raises(StorageError),
    ):
        remote.read(key)


def test_a_client_expects_the_worker_that_the_pool_named(members: Members, volume: LocalVolume, tmp_path: Path) -> None:
    key = key_of(0)
    strangers = Members.in_directory(tmp_path)
    with offered(volume, members) as address:
        for dial in (dial_of(members, "w2"), dial_of(strangers)):
            with (
                seen(address, ticket_for(members, key), key, dial=dial) as remote,
                pytest.raises(VolumeFailed, match="does not answer"),
            ):
                remote.connect()


def test_shards_that_are_not_there_are_absent(members: Members, volume: LocalVolume) -> None:
    key = key_of(7)
    with (
        offered(volume, members) as address,
        seen(address, ticket_for(members, key), key, dial=dial_of(members)) as remote,
    ):
        assert remote.read(key) is None
        assert remote.read(key_of(8)) is None  # the pool said nothing of it


@given(body=st.binary(max_size=400), method=st.integers(0, 255))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_is_refused(plain_port: str, body: bytes, method: int) -> None:
    host, _, port = plain_port.rpartition(":")
    with contextlib.closing(Peer(socket.create_connection((host, int(port)), 10.0))) as peer:
        peer.send(pack_greeting(1), call(1, body, method=method))
        peer.take(16)
        answer = peer.frame()
        assert answer is not None
        assert answer[0].kind == FrameKind.FAILURE


def test_a_large_call_ends_the_connection_before_it_has_arrived(plain_port: str) -> None:
    host, _, port = plain_port.rpartition(":")
    with contextlib.closing(Peer(socket.create_connection((host, int(port)), 10.0))) as peer:
        peer.send(pack_greeting(1), call(1, bytes(TAKING_BYTES_MAX + 1), method=Call.TAKE)[:100])
        assert peer.is_closed()


def test_many_idle_strangers_keep_nobody_out(members: Members, volume: LocalVolume) -> None:
    key = key_of(0)
    with offered(volume, members) as address, contextlib.ExitStack() as open_:
        host, _, port = address.rpartition(":")
        for _ in range(CLIENTS_LIMITS.connections + 20):
            open_.enter_context(contextlib.closing(socket.create_connection((host, int(port)), 10.0)))
        with seen(address, ticket_for(members, key), key, dial=dial_of(members)) as remote:
            assert remote.read(key) == shard_of(0, SIZE)


def test_a_client_closes_idle_connections_before_workers_do() -> None:
    now_s = [0.0]
    closed = threading.Event()

    def behave(peer: Peer) -> None:
        greeted(peer)
        peer.socket.settimeout(None)
        peer.take(1)
        closed.set()

    with peers_worker(behave) as address:
        remote = TicketedVolume(address, "w1", 0, lambda _: None, timeout_s=5.0, clock_s=lambda: now_s[0])
        with contextlib.closing(remote):
            remote.connect()
            now_s[0] += CLIENTS_LIMITS.idle_s - 5.0
            assert closed.wait(60.0)


@given(ticket=st.binary(min_size=1, max_size=100), lengths=st.lists(st.integers(0, 1000), max_size=5))
def test_requests_come_back_as_they_were(ticket: bytes, lengths: list[int]) -> None:
    wanted = [Wanted(key_of(seed), length) for seed, length in enumerate(lengths)]
    assert parse_taking(b"".join(pack_taking(ticket, wanted))) == (ticket, wanted)


@pytest.fixture(scope="module")
def plain_port(members: Members, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    volume = open_volume(tmp_path_factory.mktemp("volume") / "v")
    with offered(volume, members, plain=True) as address:
        yield address
    volume.close()

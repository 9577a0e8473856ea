"""What clients with tickets for writing can do at a worker's port for them, and what others cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from storage.clocks import wall_ms
from storage.errors import InvalidArgument
from storage.keys import Kind, ShardKey, StripeKey, object_id_of, shard_key, stripe_key
from storage.shards import LocalVolume, Shard, VolumeFailed, VolumeUnavailable
from storage.stripes.encoding import Encoder
from taskworker.auth.tickets import VALID_S, TicketChecker, TicketIssuer
from taskworker.auth.write_tickets import OBJECTS_MAX, ToWrite, WriteTicketChecker, issue
from taskworker.errors import TicketRefused
from taskworker.transport.frames import TAKING_BYTES_MAX, pack_putting, parse_putting
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.shards_of_clients import ShardsOfClients
from taskworker.transport.ticketed_volume import TicketedVolume
from taskworker.worker.clients_port import ClientsPort
from tests.auth.members import POOL, Members, worker
from tests.pool.helpers import noise, open_volume, served
from tests.transport.test_ticketed_reads import dial_of

SIZE = 400_000
W1, W2 = worker("w1").dns_name, worker("w2").dns_name


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return Members.in_directory(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LocalVolume]:
    volume = open_volume(tmp_path / "volume")
    yield volume
    volume.close()


def shards_of(seed: int, size: int = SIZE, slots: Sequence[int] = (0, 1)) -> list[Shard]:
    """Shards of an object, 4 of 6."""
    data = noise(seed, size)
    stripe = stripe_key(Kind.CHUNK, blake3(data).digest(), 4, 6)
    return Encoder().shards_of(stripe, data + bytes(-size % 4), size, slots=slots)


def ticket_for(
    members: Members,
    *shards: Shard,
    placed: Sequence[int] = (0, 0, 1, 1, 1, 1),
    bytes_max: int = 10 * SIZE,
    now_ms: Callable[[], int] = wall_ms,
) -> bytes:
    """A ticket for the objects of these shards, of which w1 gets the first two shards."""
    issuer = TicketIssuer(lambda: members.authority, now_ms)
    objects = {object_id_of(shard.key): shard.object_length for shard in shards}
    named = [ToWrite(one, length, placed) for one, length in objects.items()]
    return issue(issuer, "alice", [W1, W2], 4, 6, named, bytes_max)


@contextmanager
def offered(volume: LocalVolume, members: Members, written: ShardsOfClients | None = None) -> Iterator[TicketedVolume]:
    """A worker of the pool that serves clients, as a client sees it."""
    port = ClientsPort("w1", lambda: (volume, "i1"), members.worker, written=written)
    port.start("127.0.0.1:0", POOL, 0)
    remote = TicketedVolume(port.address, "w1", 0, lambda _: None, timeout_s=30.0, dial=dial_of(members))
    try:
        yield remote
    finally:
        remote.close()
        port.stop(0.0)


def put(remote: TicketedVolume, ticket: bytes, shards: Sequence[Shard]) -> None:
    remote.begin_put(ticket, []).wait()  # a caller that has shown no ticket sends nothing large
    remote.begin_put(ticket, shards).wait()


def stored(volume: LocalVolume, *shards: Shard) -> list[bool]:
    return [volume.read(shard.key) == shard for shard in shards]


def test_a_client_writes_what_its_ticket_names(members: Members, volume: LocalVolume) -> None:
    written = ShardsOfClients()
    shards = shards_of(1)
    with offered(volume, members, written) as remote, served(volume, "i1", from_clients=written) as address:
        pool = RemoteVolume(address, "w1")
        assert pool.begin_written([shard.key for shard in shards])() == [None, None]
        pool.sync()
        put(remote, ticket_for(members, *shards), shards)
        assert stored(volume, *shards) == [True, True]
        put(remote, ticket_for(members, *shards), shards)  # once more does no harm
        assert pool.begin_written([shard.key for shard in shards])() == [shard.digest for shard in shards]
        assert pool.needs_sync
        volume.remove([shards[0].key])
        assert pool.begin_written([shard.key for shard in shards])() == [None, shards[1].digest]
        pool.abandon("the test is over")


def test_how_far_a_worker_is_is_known_once_it_has_accepted_a_ticket(members: Members, volume: LocalVolume) -> None:
    shards = shards_of(1)
    with offered(volume, members) as remote:
        judged = [remote.distance_s]
        put(remote, ticket_for(members, *shards), shards)
        judged.append(remote.distance_s)
        with pytest.raises(VolumeUnavailable):
            put(remote, b"none", [])
        judged.append(remote.distance_s)
        put(remote, ticket_for(members, *shards), shards)
        judged.append(remote.distance_s)
        remote.close()
        judged.append(remote.distance_s)
    assert [distance_s is None for distance_s in judged] == [True, False, True, False, True]


def of_another_object(_members: Members, shards: list[Shard]) -> list[Shard]:
    return shards_of(2)


def of_another_slot(_members: Members, shards: list[Shard]) -> list[Shard]:
    return shards_of(1, slots=[2])  # which is for w2


def longer(_members: Members, shards: list[Shard]) -> list[Shard]:
    payload = bytes(shards[0].payload) + b"x"
    return [Shard(shards[0].key, SIZE + 4, blake3(payload).digest(), payload)]


def of_another_length(_members: Members, shards: list[Shard]) -> list[Shard]:
    return [shards[0]._replace(object_length=SIZE - 1)]


def of_another_kind(_members: Members, shards: list[Shard]) -> list[Shard]:
    key = StripeKey(stripe_key(Kind.NODE, object_id_of(shards[0].key), 4, 6))
    return [shards[0]._replace(key=ShardKey(key + b"\0"))]


@pytest.mark.parametrize("other", [of_another_object, of_another_slot, longer, of_another_length, of_another_kind])
def test_nothing_else_is_taken(
    members: Members, volume: LocalVolume, other: Callable[[Members, list[Shard]], list[Shard]]
) -> None:
    shards = shards_of(1)
    others = other(members, shards)
    with offered(volume, members) as remote:
        with pytest.raises(VolumeUnavailable, match="the ticket"):
            put(remote, ticket_for(members, *shards), others)
        with pytest.raises(VolumeUnavailable, match="the ticket"):
            put(remote, ticket_for(members, *shards), [*shards, *others])
        assert list(volume.keys()) == []


def test_what_is_there_is_never_replaced(members: Members, volume: LocalVolume) -> None:
    shards = shards_of(1)
    forged = noise(7, len(shards[0].payload))
    volume.append([shards[0]])
    with offered(volume, members) as remote, pytest.raises(VolumeUnavailable, match="is here already"):
        put(remote, ticket_for(members, *shards), [Shard(shards[0].key, SIZE, blake3(forged).digest(), forged)])
    assert stored(volume, shards[0]) == [True]


def forged_in_place_of(shard: Shard) -> Shard:
    payload = noise(7, len(shard.payload))
    return Shard(shard.key, SIZE, blake3(payload).digest(), payload)


def test_what_the_pool_writes_at_the_same_time_is_not_replaced(
    members: Members, volume: LocalVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, missing = shards_of(1), volume.missing

    def overtaken(keys: Sequence[ShardKey]) -> list[int]:
        found = missing(keys)
        volume.append(shards[: len(found) // 2])  # none when only the ticket is judged
        return found

    monkeypatch.setattr(volume, "missing", overtaken)
    with offered(volume, members) as remote, pytest.raises(VolumeUnavailable, match="is here already"):
        put(remote, ticket_for(members, *shards), [shards[1], forged_in_place_of(shards[0])])
    assert stored(volume, *shards) == [True, True]


def test_what_a_client_wrote_is_forgotten_before_another_shard_takes_its_place(
    members: Members, volume: LocalVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, shards, append = ShardsOfClients(), shards_of(1), volume.append_absent
    known: list[bytes | None] = []

    def noted(given: Sequence[Shard]) -> Sequence[int]:
        appended = append(given)
        known.extend(written.get(shard.key) for shard in given)
        return appended

    monkeypatch.setattr(volume, "append_absent", noted)
    with offered(volume, members, written) as remote:
        put(remote, ticket_for(members, *shards), shards)
        volume.remove([shard.key for shard in shards])
        other = forged_in_place_of(shards[0])
        put(remote, ticket_for(members, *shards), [other])
    assert known == [None, None, None]
    assert written.get(other.key) == other.digest


def test_a_payload_has_the_hash_that_comes_with_it(members: Members, volume: LocalVolume) -> None:
    shards = shards_of(1)
    with offered(volume, members) as remote, pytest.raises(VolumeFailed, match="changed on its way"):
        put(remote, ticket_for(members, *shards), [shards[0]._replace(digest=shards[1].digest)])
    assert list(volume.keys()) == []


def test_a_ticket_is_spent_when_its_bytes_were_written(members: Members, volume: LocalVolume) -> None:
    shards = shards_of(1)
    with offered(volume, members) as remote:
        ticket = ticket_for(members, *shards, bytes_max=SIZE // 2)
        put(remote, ticket, shards)
        with pytest.raises(VolumeUnavailable, match="ask for another one"):
            put(remote, ticket, shards)


def test_a_ticket_for_reading_lets_nobody_write_and_the_other_way_round(members: Members, volume: LocalVolume) -> None:
    shards = shards_of(1)
    reading = TicketIssuer(lambda: members.authority).issue("alice", [W1], 4, 6, [object_id_of(shards[0].key)], SIZE)
    with offered(volume, members) as remote, pytest.raises(VolumeUnavailable, match="not signed by this pool"):
        remote.begin_put(reading, []).wait()
    check = TicketChecker(worker("w1"), lambda: members.authority.certificates_pem).check
    with pytest.raises(TicketRefused, match="not signed by this pool"):
        check(ticket_for(members, *shards))


def test_a_ticket_is_good_for_some_minutes_at_the_workers_that_it_names(members: Members) -> None:
    now = [wall_ms()]
    shards = shards_of(1)
    raw = ticket_for(members, *shards, now_ms=lambda: now[0])

    def check(name: str) -> list[int | None]:
        authorities = members.authority.certificates_pem
        ticket = WriteTicketChecker(worker(name), lambda: authorities, lambda: now[0]).check(raw)
        return [ticket.length_of(shard.key) for shard in shards_of(1, slots=range(6))]

    assert check("w1") == [SIZE, SIZE, None, None, None, None]
    assert check("w2") == [None, None, SIZE, SIZE, SIZE, SIZE]
    with pytest.raises(TicketRefused, match="other workers"):
        check("w3")
    now[0] += int(VALID_S * 1000) + 10
    with pytest.raises(TicketRefused, match="expired"):
        check("w1")


def test_a_stranger_sends_nothing_large(members: Members, volume: LocalVolume) -> None:
    size = 4 * TAKING_BYTES_MAX
    (shard,) = shards_of(1, size, slots=[0])
    ticket = ticket_for(members, shard, bytes_max=size)
    with offered(volume, members) as remote, pytest.raises((VolumeFailed, VolumeUnavailable)):
        remote.begin_put(ticket, [shard]).wait()
    with offered(volume, members) as remote:
        put(remote, ticket, [shard])
    assert stored(volume, shard) == [True]


@given(ticket=st.binary(min_size=1, max_size=100), sizes=st.lists(st.integers(1, 1000), max_size=3))
def test_requests_come_back_as_they_were(ticket: bytes, sizes: list[int]) -> None:
    shards = [shard for seed, size in enumerate(sizes) for shard in shards_of(seed, size)]
    assert parse_putting(b"".join(pack_putting(ticket, shards))) == (ticket, shards)


@given(message=st.binary(max_size=300))
def test_whatever_is_sent_is_read_or_refused(message: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        parse_putting(message)


def test_a_ticket_of_the_most_objects_fits(members: Members) -> None:
    named = [ToWrite(bytes([at]) * 32, SIZE, range(256)) for at in range(OBJECTS_MAX)]
    names = [worker(f"w{at}").dns_name for at in range(256)]
    issuer = TicketIssuer(lambda: members.authority)
    raw = issue(issuer, "alice", names, 200, 256, named, SIZE)
    ticket = WriteTicketChecker(worker("w7"), lambda: issuer.authorities_pem).check(raw)
    places = [shard_key(stripe_key(Kind.CHUNK, bytes([63]) * 32, 200, 256), slot) for slot in range(256)]
    assert [slot for slot, key in enumerate(places) if ticket.length_of(key)] == [7]

"""Who may connect to a worker's volume, and whom the pool accepts as a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.shards import LocalVolume, VolumeFailed
from taskworker.auth.authority import Authority
from taskworker.auth.tls import MemberCredentials
from taskworker.transport.member_dialling import MemberDialling
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.shard_service import shard_server
from tests.auth.members import POOL, Members, pool, worker
from tests.pool.helpers import open_volume, served, shard_of


@pytest.fixture
def members(tmp_path: Path) -> Members:
    return Members.in_directory(tmp_path)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LocalVolume]:
    volume = open_volume(tmp_path / "volume")
    yield volume
    volume.close()


def test_the_pool_reaches_its_worker(members: Members, volume: LocalVolume) -> None:
    with served(volume, "i1", secure=MemberDialling(members.worker).accept) as address:
        dialling = MemberDialling(members.pool)
        assert dialling.identify(address, "w1") == "i1"
        remote = dialling.connect(address, "w1", "i1")
        remote.append([shard_of(1)])
        remote.sync()
        assert remote.read(shard_of(1).key) is not None
        remote.close()
    assert volume.read(shard_of(1).key) is not None


@pytest.mark.parametrize("who", ["another worker", "another pool of the same name", "the worker itself"])
def test_others_change_nothing(members: Members, volume: LocalVolume, tmp_path: Path, who: str) -> None:
    match who:
        case "another worker":
            credentials = MemberCredentials(members.authority.issue_own(worker("w2")))
        case "the worker itself":
            credentials = members.worker
        case _:
            credentials = MemberCredentials(Authority(tmp_path / "other.pem", POOL).issue_own(pool()))
            credentials.client.load_verify_locations(cadata=members.authority.certificates_pem.decode())
    volume.append([shard_of(2)])
    with as_worker(volume, members) as address:
        dialling = MemberDialling(credentials)
        with pytest.raises(VolumeFailed):
            dialling.identify(address, "w1")
        calls: tuple[Callable[[RemoteVolume], object], ...] = (
            lambda remote: remote.start_sync([shard_of(1)]).wait(),
            lambda remote: remote.remove([shard_of(2).key]),
            lambda remote: list(remote.keys()),
            lambda remote: remote.usage(),
            lambda remote: remote.read(shard_of(2).key),
        )
        for call in calls:
            remote = dialling.connect(address, "w1", "i1")
            with pytest.raises(VolumeFailed):
                call(remote)
            remote.abandon("the test is over")
    assert volume.read(shard_of(1).key) is None
    assert volume.read(shard_of(2).key) is not None


def test_workers_fetch_shards_from_each_other(members: Members, volume: LocalVolume) -> None:
    shard = shard_of(2)
    volume.append([shard])
    with as_worker(volume, members) as address:
        other = MemberDialling(MemberCredentials(members.authority.issue_own(worker("w2"))))
        remote = RemoteVolume(address, address, dial=other.to_workers().dial)
        (payload,) = remote.fetch_all([(shard.key, len(shard.payload))])
        assert payload is not None
        assert bytes(payload) == bytes(shard.payload)
        remote.abandon("the test is over")


def test_a_worker_fetches_from_workers_only(members: Members, volume: LocalVolume, tmp_path: Path) -> None:
    """Not from another pool's, nor from whatever else listens at the address."""
    strangers = MemberCredentials(Authority(tmp_path / "other.pem", POOL).issue_own(worker("w9")))
    own = MemberDialling(members.worker)
    for credentials in (strangers, members.pool):
        with (
            served(volume, "i1", secure=MemberDialling(credentials).accept) as address,
            pytest.raises(OSError, match=r"(?i)certificate|pool pool"),
        ):
            own.to_workers().dial(address, 5.0)


@contextmanager
def as_worker(volume: LocalVolume, members: Members) -> Iterator[str]:
    """Serve a volume as a worker of the pool does."""
    dialling = MemberDialling(members.worker)
    server = shard_server(volume, "i1", secure=dialling.accept, allowed=dialling.allowed)
    try:
        yield server.start("127.0.0.1:0")
    finally:
        server.stop(0.0)


def test_a_worker_at_anothers_address_is_found_out(members: Members, volume: LocalVolume) -> None:
    other = MemberCredentials(members.authority.issue_own(worker("w2")))
    with served(volume, "i1", secure=MemberDialling(other).accept) as address:
        dialling = MemberDialling(members.pool)
        with pytest.raises(VolumeFailed):
            dialling.identify(address, "w1")
        assert dialling.identify(address, "w2") == "i1"


def test_renewed_credentials_are_used_by_later_connections(members: Members, volume: LocalVolume) -> None:
    server, client = MemberDialling(members.worker), MemberDialling(members.pool)
    with served(volume, "i1", secure=server.accept) as address:
        assert client.identify(address, "w1") == "i1"
        members.authority.add_next()
        members.worker.renew(members.authority.issue_own(worker("w1")))
        members.pool.renew(members.authority.issue_own(pool()))
        members.authority.promote()
        members.worker.renew(members.authority.issue_own(worker("w1")))
        assert client.identify(address, "w1") == "i1"
        members.pool.renew(members.authority.issue_own(pool()))
        members.authority.drop_former()
        members.pool.renew(members.authority.issue_own(pool()))
        members.worker.renew(members.authority.issue_own(worker("w1")))
        assert client.identify(address, "w1") == "i1"

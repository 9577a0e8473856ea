"""Which pools encrypt unless they are told otherwise, and whose workers those take that do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.errors import InvalidArgument
from taskworker.apps.pool_server import PoolServer
from taskworker.client.pool import PoolClient, PoolStatus
from taskworker.client.users import UserClient
from taskworker.outbound.secrets.master_key import GivenKeys
from taskworker.pool.node_pool import NodePool
from taskworker.pool.options import PoolOptions
from taskworker.worker.volume import VolumeWorker

KEY = GivenKeys("A" * 43 + "=")


@contextmanager
def running(directory: Path, options: PoolOptions | None = None, key: GivenKeys | None = None) -> Iterator[str]:
    """A pool in a directory; its address."""
    server = PoolServer(directory, options=options, master_key=key)
    address = f"127.0.0.1:{server.start('127.0.0.1:0')}"
    try:
        yield address
    finally:
        server.stop(0.0)


def status(address: str) -> PoolStatus:
    with PoolClient(address) as client:
        found = client.status()
    assert found is not None
    return found


def test_a_new_pool_encrypts_until_it_is_told_otherwise(tmp_path: Path) -> None:
    for told, expected in ((None, True), (None, True), (False, False), (None, False), (True, True)):
        with running(tmp_path / "pool", PoolOptions(encrypts=told)) as address:
            shown = status(address)
            assert shown.encrypts is expected
            assert shown.master_key_id  # the catalog stays encrypted
            assert not shown.master_key_copied_ms
    with running(tmp_path / "given", key=KEY) as address:
        assert status(address).master_key_copied_ms  # whoever gives it has it


def test_an_old_pool_stays_as_it_is(tmp_path: Path) -> None:
    NodePool(tmp_path).close()  # without keys, as pools were before they encrypted
    with running(tmp_path) as address:
        assert not status(address).encrypts


def test_the_pool_that_takes_the_place_of_a_lost_one_makes_no_key(tmp_path: Path) -> None:
    lost = PoolOptions(rebuild="5" * 32)
    with running(tmp_path / "without", lost) as address:
        assert not status(address).encrypts
    assert not (tmp_path / "without" / "master.key").exists()
    with running(tmp_path / "with", lost, KEY) as address:
        assert status(address).encrypts


def test_only_former_users_are_shredded(tmp_path: Path) -> None:
    with running(tmp_path / "pool") as address, UserClient(address) as users:
        users.add("boss", "operator")
        users.add("ann", "user")
        with pytest.raises(InvalidArgument, match="taskworker user rm"):
            users.destroy_keys("ann")
        users.remove("ann")
        assert users.destroy_keys("ann") == 0


def test_without_encryption_workers_of_other_owners_are_refused(tmp_path: Path) -> None:
    def join(name: str, owner: str, address: str) -> None:
        worker = VolumeWorker(name, address, tmp_path / name, owner=owner)
        try:
            worker.start("127.0.0.1:0")
        finally:
            worker.stop(0.0)

    plain = PoolOptions(encrypts=False, owner="anna")
    refusal = (
        "w3 is of owner bert, who could read what it holds.*start the pool with --encryption, or with --owner bert"
    )
    with running(tmp_path / "pool", plain) as address:
        join("w1", "anna", address)
        join("w2", "", address)
        with pytest.raises(InvalidArgument, match=refusal):
            join("w3", "bert", address)
    with running(tmp_path / "pool", PoolOptions(encrypts=True)) as address:
        join("w3", "bert", address)
    with pytest.raises(InvalidArgument, match=refusal), running(tmp_path / "pool", plain):
        pass
    with running(tmp_path / "pool") as address:
        assert status(address).encrypts

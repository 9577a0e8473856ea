"""Workers find their pool: started before it, and when it comes back on another port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.errors import InvalidArgument
from taskworker.apps.pool_server import PoolServer
from taskworker.errors import StorageUnavailable
from taskworker.pool.options import PoolOptions
from taskworker.rpc.dialling import target_of
from taskworker.worker.volume import VolumeWorker

_WAIT_S = 30.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def pool_at(port: int, directory: Path) -> Iterator[PoolServer]:
    server = PoolServer(directory, options=PoolOptions(lease_s=1.0, allow_fragile=True))
    server.start(f"127.0.0.1:{port}")
    try:
        yield server
    finally:
        server.stop(0.0)


def until(is_so: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + _WAIT_S
    while not is_so():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def names(pool: PoolServer) -> list[str]:
    return [view.record.worker for view in pool.pool.view().workers if view.state.value == "alive"]


def test_a_worker_started_before_its_pool_finds_it_at_any_of_its_addresses(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    worker = VolumeWorker("w1", ",".join(f"127.0.0.1:{port}" for port in ports), tmp_path / "w1")
    starting = threading.Thread(target=worker.start, args=("127.0.0.1:0",))
    starting.start()
    try:
        starting.join(1.0)
        assert starting.is_alive()
        for port in (ports[1], ports[0], ports[1]):  # it moves twice
            with pool_at(port, tmp_path / "pool") as pool:
                until(lambda: names(pool) == ["w1"])
                starting.join(_WAIT_S)  # it may not have been told yet that it has joined
                assert not starting.is_alive()
    finally:
        worker.give_up()
        starting.join()
        worker.stop(0.0)


def test_a_start_that_waits_for_the_pool_can_be_given_up(tmp_path: Path) -> None:
    worker = VolumeWorker("w1", f"127.0.0.1:{free_port()}", tmp_path / "w1")
    threading.Timer(0.2, worker.give_up).start()
    with pytest.raises(StorageUnavailable, match="no pool answers"):
        worker.start("127.0.0.1:0")
    worker.stop(0.0)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("127.0.0.1:1,127.0.0.2:20", "ipv4:127.0.0.1:1,127.0.0.2:20"),
        ("localhost:1, 127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::2]:3", "ipv6:[::1]:1,[::2]:3"),
    ],
)
def test_several_addresses_as_grpc_takes_them(address: str, target: str) -> None:
    assert target_of(address) == target


@pytest.mark.parametrize("address", ["127.0.0.1:1,unix:/x", "127.0.0.1:1,", "a:b,127.0.0.1:1", "127.0.0.1:1,[::1]:2"])
def test_what_several_addresses_cannot_be(address: str) -> None:
    with pytest.raises(InvalidArgument, match="address"):
        target_of(address)

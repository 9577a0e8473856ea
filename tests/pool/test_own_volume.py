"""A worker's volume that failed is reopened in the same process, and only that very volume."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from storage import FileStorage
from storage.shards import VolumeFailed, VolumeUnavailable
from taskworker.errors import WorkerReadOnly
from taskworker.services.file_server import FileServer
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.shard_service import shard_server
from taskworker.worker.own_volume import OwnVolume
from tests.pool.helpers import open_volume, shard_of
from tests.storage.faulty_disk import FaultyDisk

WELL = health_pb2.HealthCheckResponse


def eventually(is_so: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.02)


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def own(path: Path, disk: FaultyDisk, clock_s: Callable[[], float] = time.monotonic) -> OwnVolume:
    def again() -> object:
        if not (path / "VOLUME").exists():
            raise VolumeUnavailable(f"there is no volume in {path}")
        return open_volume(path, disk)

    return OwnVolume(open_volume(path, disk), again, clock_s)  # type: ignore[arg-type]


def test_a_directory_that_drops_out(tmp_path: Path) -> None:
    path, clock = tmp_path / "volume", Clock()
    volume = own(path, FaultyDisk(), clock)
    before = volume.current()
    before.volume.append([shard_of(1)])
    before.volume.sync()
    assert volume.tend()
    path.rename(tmp_path / "away")
    assert not volume.tend()
    assert not path.exists(), "nothing is made where a disk may be missing"
    with pytest.raises(VolumeFailed, match=r"removed or unmounted|no volume in"):
        volume.current()
    clock.s += 10.0
    assert volume.failing_s == 10.0
    (tmp_path / "away").rename(path)
    assert volume.tend()
    after = volume.current()
    assert after.instance != before.instance, "what was not synced may be gone"
    assert after.volume.read(shard_of(1).key) is not None
    assert volume.failing_s == 0
    volume.close()


def test_one_failed_flush(tmp_path: Path) -> None:
    """The pool's connection is meant for the volume as it was before: it learns that it has to look again."""
    disk = FaultyDisk()
    volume = own(tmp_path / "volume", disk)
    server = shard_server(None, current=volume.current)
    address = server.start("127.0.0.1:0")
    remote = RemoteVolume(address, "w1", volume.current().instance)
    remote.append([shard_of(1)])
    remote.sync()
    disk.fail(errno.EIO, "datasync")
    remote.append([shard_of(2)])
    with pytest.raises(VolumeFailed, match="Input/output error"):
        remote.sync()
    disk.heal()
    eventually(volume.tend)
    stale = RemoteVolume(address, "w1", "the instance before")
    stale.append([shard_of(3)])
    with pytest.raises(VolumeFailed, match="restarted, or reopened its volume"):
        stale.sync()
    fresh = RemoteVolume(address, "w1", volume.current().instance)
    fresh.append([shard_of(2)])
    fresh.sync()
    assert fresh.missing([shard_of(1).key, shard_of(2).key]) == []
    for connection in (remote, stale, fresh):
        connection.abandon("the test is over")
    server.stop(0.0)
    volume.close()


def test_a_disk_that_fails_again_and_again_is_not_opened_again_at_once(tmp_path: Path) -> None:
    """Each opening has the worker join the pool anew, which takes its shards to others and back."""
    disk, clock = FaultyDisk(), Clock()
    volume = own(tmp_path / "volume", disk, clock)
    instances = set()
    disk.fail(errno.EIO, "datasync")
    for number in range(200):
        if volume.tend():
            opened = volume.current()
            instances.add(opened.instance)
            opened.volume.append([shard_of(number)])
            with pytest.raises(VolumeFailed):
                opened.volume.sync()
    assert len(instances) <= 2, "the first failure may have passed, the second one has not"
    disk.heal()
    clock.s += 10.0
    assert volume.tend()
    volume.close()


def test_a_disk_that_takes_no_writes_gives_out_what_it_has(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = own(tmp_path / "volume", disk)
    server = shard_server(None, current=volume.current)
    remote = RemoteVolume(server.start("127.0.0.1:0"), "w1")
    remote.append([shard_of(1)])
    remote.sync()
    disk.fail(errno.EROFS, "write", "create", "open_writable", "truncate")
    remote.append([shard_of(2)])
    with pytest.raises(WorkerReadOnly, match="Read-only file system"):
        remote.sync()
    assert volume.tend()
    assert remote.usage().bytes_free == 0
    assert remote.read(shard_of(1).key) is not None
    remote.abandon("the test is over")
    server.stop(0.0)
    volume.close()


def test_health_tells_of_a_catalog_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileStorage.open(tmp_path / "store") as store:
        server = FileServer(store)
        with grpc.insecure_channel(f"127.0.0.1:{server.start('127.0.0.1:0')}") as channel:
            ask = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=WELL.FromString,
            )
            assert ask(health_pb2.HealthCheckRequest()).status == WELL.SERVING
            monkeypatch.setattr(store._catalog, "trouble", lambda: "the disk is gone")
            assert ask(health_pb2.HealthCheckRequest()).status == WELL.NOT_SERVING
            monkeypatch.undo()
            assert ask(health_pb2.HealthCheckRequest()).status == WELL.SERVING
            server.tell_health(serving=False)
            assert ask(health_pb2.HealthCheckRequest()).status == WELL.NOT_SERVING
        server.stop(0.0)

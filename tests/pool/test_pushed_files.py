"""Small files that were just pushed through a pool are read from its memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import FileNotFound
from taskworker import Client
from taskworker.apps.pool_server import PoolServer
from taskworker.pool.options import PoolOptions
from taskworker.worker.volume import VolumeWorker

USER = "ada"
CONTENT = bytes(range(256)) * 16


@pytest.mark.parametrize("encrypts", [True, False], ids=["encrypted", "in clear"])
def test_a_small_file_needs_no_worker_until_it_is_deleted(tmp_path: Path, encrypts: bool) -> None:
    pool = PoolServer(tmp_path / "pool", options=PoolOptions(allow_fragile=True, encrypts=encrypts))
    address = f"127.0.0.1:{pool.start('127.0.0.1:0')}"
    worker = VolumeWorker("w1", address, tmp_path / "w1")
    worker.start("127.0.0.1:0")
    try:
        with Client(address) as client:
            pushed = client.push(CONTENT, filename="small", user_id=USER)
            (other,) = client.push_many([("of many", CONTENT[1:])], user_id=USER)
            before = pool.pool.store.hot_objects()
            assert client.get(pushed.file_id, user_id=USER) == CONTENT
            assert client.get(other.result().file_id, user_id=USER) == CONTENT[1:]
            after = pool.pool.store.hot_objects()
            assert (after.hits, after.misses) == (before.hits + 2, before.misses)
            for file_id in (pushed.file_id, other.result().file_id):
                client.delete(file_id, user_id=USER)
                with pytest.raises(FileNotFound):
                    client.get(file_id, user_id=USER)
            assert pool.pool.store.hot_objects().bytes_used == 0
    finally:
        worker.stop(0.0)
        pool.stop(0.0)


def test_the_memory_for_small_objects_is_one_limit_for_all() -> None:
    assert PoolOptions(hot_bytes=0).pushed_bytes == 0
    assert PoolOptions(hot_bytes=8 << 20).pushed_bytes == 1 << 20
    assert PoolOptions().pushed_bytes == 4 << 20

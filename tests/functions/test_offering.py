"""A worker goes on telling its pool what it can run, whatever happens."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from taskworker.apps.pool_server import PoolServer
from taskworker.functions.hosting.host import Warm
from taskworker.pool.options import PoolOptions
from taskworker.worker.functions import HostedFunctions


def test_a_fault_in_one_offer_is_not_the_end_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PoolServer(tmp_path / "pool", options=PoolOptions(allow_fragile=True))
    hosted = HostedFunctions(f"127.0.0.1:{pool.start('127.0.0.1:0')}", tmp_path / "functions", required=False)
    faults = [OSError("too many open files"), RuntimeError("can't start new thread")]

    def views() -> list[Warm]:
        if faults:
            raise faults.pop()
        return []

    monkeypatch.setattr(hosted.host, "views", views)
    try:
        hosted.start("runner", "1", "127.0.0.1:1")
        give_up = time.monotonic() + 60
        while not hosted.is_taken:
            assert time.monotonic() < give_up, "it does not offer any more"
            hosted.offer_soon()
            time.sleep(0.02)
        assert [host.worker for host in pool.functions.hosting.hosts()] == ["runner"]
    finally:
        hosted.close()
        pool.stop(0.0)

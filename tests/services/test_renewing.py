"""The pool's own certificate is renewed in time, whatever happens before."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from taskworker.apps import members_server
from taskworker.apps.pool_server import PoolServer
from taskworker.errors import StorageUnavailable
from taskworker.pool.node_pool import NodePool
from taskworker.pool.options import PoolOptions


def test_a_renewal_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [ValueError("unforeseen"), StorageUnavailable("the catalog cannot be read"), OSError("no descriptors")]
    renewed = threading.Event()

    def renew(_pool: NodePool, *, only_if_due: bool = False) -> None:
        if errors:
            raise errors.pop()
        renewed.set()

    monkeypatch.setattr(members_server, "_LOOK_S", 0.01)
    monkeypatch.setattr(NodePool, "renew_identity", renew)
    pool = PoolServer(tmp_path / "pool", options=PoolOptions(allow_fragile=True), joins_by_token=True)
    try:
        pool.start("127.0.0.1:0", "127.0.0.1:0")
        assert renewed.wait(30)
    finally:
        pool.stop(0.0)

"""A pool has one certificate authority, whoever needs it first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from taskworker.auth.authority import Authority
from taskworker.pool.node_pool import NodePool

TOGETHER = 8


def test_who_needs_the_authority_at_the_same_moment_gets_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = threading.Barrier(TOGETHER)

    def slowly(*arguments: Any) -> Any:
        threading.Event().wait(0.05)  # others would come in meanwhile
        return Authority(*arguments)

    def asked(pool: NodePool) -> bytes:
        others.wait()
        return pool.tickets.authorities_pem

    monkeypatch.setattr("taskworker.pool.node_pool.Authority", slowly)
    pool = NodePool(tmp_path)
    try:
        with ThreadPoolExecutor(TOGETHER) as threads:
            told = {one.result() for one in [threads.submit(asked, pool) for _ in range(TOGETHER)]}
    finally:
        pool.close()
    assert len(told) == 1

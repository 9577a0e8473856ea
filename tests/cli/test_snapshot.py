"""snapshot, of a pool that runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import TIMEOUT_S, Cli


@contextmanager
def pool(cli: Cli, directory: str) -> Iterator[str]:
    """A pool without workers; its address."""
    process = cli.start("pool", "--dir", directory, "--listen", "127.0.0.1:0", "--json", stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        yield json.loads(os.read(process.stdout.fileno(), 4096))["address"]
    finally:
        process.terminate()
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err.decode()


@pytest.fixture
def alone(tmp_path: Path) -> Cli:
    """With no store or pool of its own."""
    return Cli(tmp_path, {}, "ann")


def test_a_pool_starts_on_a_snapshot_of_one_that_runs(alone: Cli) -> None:
    with pool(alone, "pool") as address:
        alone.run("secret", "set", "api_key", "--pool", address, stdin=b"value")
        told = alone.text("snapshot", "pool", "快照")
        assert "catalog, calls" in told
        assert "master.key is not in it" in told
        taken = alone.json("snapshot", "pool", "with key", "--with-key")
        assert (taken["databases"], taken["files"]) == (["catalog", "calls"], ["master.key"])
        assert (alone.directory / "with key" / "master.key").stat().st_mode & 0o777 == 0o600
        pool_id = alone.json("status", "--pool", address)["pool_id"]
        assert "exists already" in alone.error("snapshot", "pool", "快照", code=2)
        assert "there is no catalog" in alone.error("snapshot", ".", "other", code=2)
    with pool(alone, "with key") as address:
        assert alone.json("status", "--pool", address)["pool_id"] == pool_id
        assert "api_key" in alone.text("secret", "ls", "--pool", address)
    assert not (alone.directory / "快照" / "master.key").exists()

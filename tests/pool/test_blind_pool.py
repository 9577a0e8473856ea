"""A pool of real processes that keeps what it cannot read: nothing planted is anywhere in its or its workers' files."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from storage.errors import InsufficientWorkers
from storage.sealing.master_keys import new_key_file
from taskworker import Client
from taskworker.errors import FunctionFailed, StorageUnavailable
from tests.functions.processes import USER, WAIT_S, FunctionPool

WORD = "种下的明文"
PLANTED = ("planted", "Planted", WORD)
MODULE = """
from taskworker.inside import worker


def first(name: str) -> str:
    return worker.storage.get(name)[:5].decode()
"""


def content(size: int, seed: int) -> bytes:
    return (WORD.encode() * 1000 + Random(seed).randbytes(size))[:size]


def push(client: Client, data: bytes, name: str) -> str:
    """Push once the workers have joined."""
    give_up = time.monotonic() + WAIT_S
    while True:
        try:
            return client.push(data, filename=name, user_id=USER, note=f"planted-note {WORD}").file_id
        except (StorageUnavailable, InsufficientWorkers):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


def test_nothing_readable_is_kept_anywhere(tmp_path: Path) -> None:
    key = new_key_file(tmp_path / "my-key")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "reads.py").write_text(MODULE)
    running = tmp_path / "running"
    running.mkdir()
    with FunctionPool(running, pool_options=["--no-encryption"]) as pool, Client(pool.address, key=key) as client:
        large = push(client, content(3 << 20, 1), f"{WORD}/planted-large")
        files = {push(client, content(4096, 2), f"{WORD}/planted-small"): content(4096, 2)}
        files[large] = content(3 << 20, 1)[: 1 << 20] + content(2 << 20, 3)
        client.revise(large, files[large], user_id=USER, note=f"Planted {WORD}")
        many = [(f"planted-{at}", content(2000 + at, at)) for at in range(5)]
        for outcome, (_, data) in zip(client.push_many(many, user_id=USER), many, strict=True):
            files[outcome.result().file_id] = data
        pool.deploy("first", "reads:first", tmp_path / "code")
        pool.await_workers("first", 3)
        shown = pool.client.stat(large, user_id=USER).filename
        with pytest.raises(FunctionFailed, match="sealed with a key"):
            pool.client.call("first", [shown], user_id=USER)
        assert {file_id: client.get(file_id, user_id=USER) for file_id in files} == files
        names = [version.filename for version in client.list_files(user_id=USER)]
        assert names == sorted(
            [f"{WORD}/planted-large", f"{WORD}/planted-small", *(name for name, _ in many)], key=str.encode
        )
    require_unreadable(running)


def require_unreadable(directory: Path) -> None:
    kept = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".seg" for path in kept)
    assert any(path.suffix == ".mdb" for path in kept)
    for path in kept:
        raw = path.read_bytes()
        for word in PLANTED:
            assert word.encode() not in raw, path

"""Shredding in a pool: real processes, old disks, workers that are away, and kills at any moment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from storage.errors import StorageError
from taskworker.client.pool import PoolClient
from tests import forked
from tests.functions.processes import FunctionPool
from tests.pool.test_encrypted_pool import exported_key, rebuild_elsewhere

DECODER = Path(__file__).parents[1] / "storage" / "decode_sealed_by_format.py"
WAIT_S = 60.0
USER = "ada"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[FunctionPool]:
    with FunctionPool(tmp_path, workers=4, pool_options=["--encryption"]) as running:
        running.await_whole()
        yield running


def shred(pool: FunctionPool) -> str:
    arguments = ("shred", "--pool", pool.address)
    done = forked.run(arguments, cwd=pool.directory, env=os.environ, stdin=b"", timeout_s=WAIT_S)
    assert not done.returncode, done.stderr.decode()
    return done.stdout.decode()


def push(pool: FunctionPool, *names: str) -> dict[str, tuple[str, bytes]]:
    contents = {name: Random(name).randbytes(3000 + 200_000 * (at % 2)) for at, name in enumerate(names)}
    return {
        name: (pool.client.push(data, filename=name, user_id=USER).file_id, data) for name, data in contents.items()
    }


def require_all(pool: FunctionPool, kept: dict[str, tuple[str, bytes]]) -> None:
    for file_id, data in kept.values():
        give_up = time.monotonic() + WAIT_S
        while True:  # until a pool that was started again has its workers back
            try:
                assert pool.client.get(file_id, user_id=USER) == data
                break
            except StorageError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)


def await_answer(pool: FunctionPool) -> None:
    """Return once a pool that was started again answers this process."""
    give_up = time.monotonic() + WAIT_S
    while True:
        try:
            with PoolClient(pool.address) as client:
                client.status()
                return
        except StorageError:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def decoded(pool: FunctionPool, out: Path, *directories: Path) -> dict[str, bytes]:
    out.mkdir()
    volumes = [str(path) for directory in directories for path in sorted(directory.glob("w*/volume"))]
    key = next(path for path in (pool.directory / "pool", pool.directory / "elsewhere") if path.exists()) / "master.key"
    subprocess.run([sys.executable, str(DECODER), str(out), str(key), *volumes], check=True, timeout=WAIT_S)
    return {path.name.removeprefix(f"{USER}-"): path.read_bytes() for path in out.iterdir()}


def test_old_disks_and_the_later_key_show_only_what_was_kept(pool: FunctionPool, tmp_path: Path) -> None:
    kept = push(pool, "a", "b", "c", "d")
    doomed = push(pool, "doomed", "also doomed")
    for name in pool.workers:
        shutil.copytree(pool.directory / name / "volume", tmp_path / "old" / name / "volume")
    assert {"doomed", "also doomed"} < decoded(pool, tmp_path / "before", tmp_path / "old").keys()
    pool.workers["w2"].kill()
    for file_id, _ in doomed.values():
        pool.client.delete(file_id, user_id=USER)
    assert "what was deleted is shredded" in shred(pool)
    kept |= push(pool, "later", "also later")
    require_all(pool, kept)
    pool.start_worker("w2")
    pool.await_whole()
    everything = {name: data for name, (_, data) in kept.items()}
    assert decoded(pool, tmp_path / "after", tmp_path / "old", pool.directory) == everything

    pool.restart_pool()
    require_all(pool, kept)
    pool.client.delete(kept.pop("a")[0], user_id=USER)
    shred(pool)
    pool_id, recovery_key = exported_key(pool)
    pool.pool_process.kill()
    rebuild_elsewhere(pool, pool_id, recovery_key)
    require_all(pool, kept)
    kept |= push(pool, "after the rebuild")
    shred(pool)
    require_all(pool, kept)
    everything = {name: data for name, (_, data) in kept.items()}
    assert decoded(pool, tmp_path / "last", tmp_path / "old", pool.directory) == everything


# Python leaves a socket open whose server goes away in the middle of TLS's handshake (`SSLSocket._create`).
@pytest.mark.filterwarnings("ignore:.*unclosed <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_a_pool_may_be_killed_while_it_shreds_under_load(pool: FunctionPool, tmp_path: Path) -> None:
    rng = Random(5)
    kept = push(pool, *(f"file {number}" for number in range(12)))
    kept_lock, stop = threading.Lock(), threading.Event()

    def work(number: int) -> None:
        at = 0
        while not stop.is_set():
            at += 1
            try:
                own = push(pool, f"load {number} {at}")
            except StorageError:
                time.sleep(0.05)
                continue
            with kept_lock:
                kept.update(own)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for turn in range(6):
        gone = kept.pop(f"file {turn}")
        pool.client.delete(gone[0], user_id=USER)

        def turning() -> None:
            try:
                with PoolClient(pool.address) as client:
                    client.shred()
            except StorageError:
                return  # the pool was killed

        thread = threading.Thread(target=turning)
        thread.start()
        time.sleep(rng.random() * 0.15)
        pool.restart_pool()
        thread.join()
        await_answer(pool)
        pool.await_whole()
    stop.set()
    for worker in workers:
        worker.join()
    require_all(pool, kept)
    shred(pool)
    require_all(pool, kept)
    found = decoded(pool, tmp_path / "out", pool.directory)
    assert {name: data for name, (_, data) in kept.items()}.items() <= found.items()
    assert not {f"file {turn}" for turn in range(6)} & found.keys()

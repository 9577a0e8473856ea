"""A pool that encrypts: real processes, of which the workers never have anything to read."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

import pytest

from storage.errors import InsufficientWorkers
from taskworker import Client
from taskworker.client.keys import KeyClient
from taskworker.client.pool import PoolClient
from taskworker.client.secrets import SecretClient
from taskworker.errors import StorageUnavailable
from tests import forked
from tests.cluster.processes import Process
from tests.functions.processes import FunctionPool

WAIT_S = 60.0
PLANTED = b"PlantedPlaintext"
ADA, EVE = "planted-ada", "planted-eve"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[FunctionPool]:
    with FunctionPool(tmp_path, pool_options=["--encryption"]) as running:
        yield running


def content(size: int, seed: int) -> bytes:
    return (PLANTED + Random(seed).randbytes(size))[:size]


def push(client: Client, data: bytes, name: str, user: str) -> str:
    """Push once the workers have joined."""
    give_up = time.monotonic() + WAIT_S
    while True:
        try:
            return client.push(data, filename=name, user_id=user, note="planted-note").file_id
        except (StorageUnavailable, InsufficientWorkers):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


def require_unreadable(directory: Path) -> None:
    segments = list(directory.glob("w*/volume/*.seg"))
    assert len(segments) >= 3
    for path in segments:
        raw = path.read_bytes()
        for plaintext in (PLANTED, b"planted", b"Planted"):
            assert plaintext not in raw


def test_workers_have_nothing_to_read_and_the_key_opens_everything(pool: FunctionPool) -> None:
    small, large = content(4096, 1), content(3 << 20, 2)
    files = {push(pool.client, data, f"planted-{size}", ADA): data for size, data in enumerate((small, large))}
    outcomes = pool.client.push_many([(f"planted-many-{at}", content(2000, at)) for at in range(5)], user_id=EVE)
    assert all(outcome.error is None for outcome in outcomes)
    (of_large,) = (file_id for file_id, data in files.items() if data == large)
    changed = large[: 1 << 20] + content(2 << 20, 3)
    pool.client.revise(of_large, changed, user_id=ADA)
    files[of_large] = changed
    assert pool.client.push(changed, filename="planted-1", user_id=ADA).unchanged
    require_unreadable(pool.directory)
    files |= rotate_under_load(pool)

    with SecretClient(pool.address) as operator:
        operator.set("key", "value")
        operator.rotate_master_key()
    for restarted in (False, True):
        if restarted:
            pool.restart_pool()
        for file_id, data in files.items():
            assert _read(pool, file_id) == data
    push(pool.client, content(5000, 9), "planted-after-restart", ADA)
    require_unreadable(pool.directory)

    pool_id, recovery_key = exported_key(pool)
    pool.pool_process.kill()
    key = pool.directory / "pool" / "master.key"
    key.unlink()
    arguments = ["pool", "--dir", str(pool.directory / "pool"), "--listen", pool.address]
    with pytest.raises(AssertionError, match=r"encrypted with the key .* give the right key"):
        Process(arguments, pool.directory / "refused.log")
    assert not key.exists()

    rebuild_elsewhere(pool, pool_id, recovery_key)
    for file_id, data in files.items():
        assert _read(pool, file_id) == data
    push(pool.client, content(5000, 10), "planted-after-rebuild", ADA)
    require_unreadable(pool.directory)


def rotate_under_load(pool: FunctionPool) -> dict[str, bytes]:
    """Rotate a user's key while the user pushes and gets, without an error; what the user pushed, by id."""
    stop = threading.Event()
    pushed: dict[str, bytes] = {}

    def work(number: int) -> None:
        for at in count():
            if stop.is_set():
                break
            data = content(3000 + at, 100 * number + at)
            file_id = pool.client.push(data, filename=f"planted-load-{number}-{at}", user_id=ADA).file_id
            assert pool.client.get(file_id, user_id=ADA) == data
            pushed[file_id] = data

    def has_grown(so_far: int) -> bool:
        return len(pushed) > so_far + 3 or any(one.done() for one in running)

    with ThreadPoolExecutor(3) as workers, KeyClient(pool.address) as keys:
        running = [workers.submit(work, number) for number in range(3)]
        try:
            for epoch in range(2, 7):
                so_far = len(pushed)
                assert keys.rotate(ADA) == epoch
                wait_until(partial(has_grown, so_far))
        finally:
            stop.set()
        for one in running:
            one.result()
    return pushed


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def exported_key(pool: FunctionPool) -> tuple[str, str]:
    """Return the pool's id and the recovery key; its status knows of no copy before, and of one then."""
    with PoolClient(pool.address) as client:
        before = client.status()
        assert before is not None
        assert before.encrypts
        assert before.master_key_id
        assert not before.master_key_copied_ms
        text = command("secret", "export-key", "--pool", pool.address)
        after = client.status()
        assert after is not None
        assert after.master_key_copied_ms
    return after.pool_id, text


def rebuild_elsewhere(pool: FunctionPool, pool_id: str, recovery_key: str) -> None:
    """Rebuild the pool, of which nothing is left but its workers and the recovery key."""
    directory = pool.directory / "elsewhere"
    shutil.rmtree(pool.directory / "pool")
    wrong = recovery_key.replace("2  ", "2  A", 1)
    with pytest.raises(subprocess.CalledProcessError):
        command("secret", "import-key", str(directory / "master.key"), given=wrong)
    command("secret", "import-key", str(directory / "master.key"), given=recovery_key)
    arguments = ["pool", "--dir", str(directory), "--listen", pool.address, "--k", "1", "--n", "3"]
    pool.pool_process = Process([*arguments, "--encryption", "--rebuild", pool_id], pool.directory / "elsewhere.log")
    with PoolClient(pool.address) as client:
        give_up = time.monotonic() + WAIT_S
        while f"{len(pool.workers)} workers have joined" not in (status.health if (status := client.status()) else ""):
            assert time.monotonic() < give_up, "the workers did not come back"
            time.sleep(0.1)
        pool.client.rebuild()
        rebuilt = client.status()
        assert rebuilt is not None
        assert rebuilt.encrypts


def command(*arguments: str, given: str = "") -> str:
    """Run a command; its output."""
    done = forked.run(arguments, cwd=Path.cwd(), env=os.environ, stdin=given.encode(), timeout_s=WAIT_S)
    done.check_returncode()
    return done.stdout.decode()


def _read(pool: FunctionPool, file_id: str) -> bytes:
    """Read once the pool and enough workers are back."""
    give_up = time.monotonic() + WAIT_S
    while True:
        try:
            return pool.client.get(file_id, user_id=ADA)
        except (StorageUnavailable, InsufficientWorkers):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)

"""A user's files as directories: their names, their former versions, and a pool that goes away and comes back."""

from __future__ import annotations

import errno
import os
import time
from io import FileIO
from pathlib import Path

import pytest

from taskworker.gateways.fuse.stored import HIDDEN
from taskworker.gateways.s3.metadata import MARKER
from tests.functions.processes import FunctionPool
from tests.gateways.fuse.mounts import mounted, needs_fuse

pytestmark = needs_fuse


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_files_are_as_they_are_or_as_they_were(pool: FunctionPool, user: str, tmp_path: Path) -> None:
    client = pool.client
    first = client.push(b"one", filename="d/e/changed", user_id=user)
    client.push(b"still", filename="d/still", user_id=user)
    time.sleep(0.01)  # times are milliseconds
    then = time.time()
    time.sleep(0.01)
    client.revise(first.file_id, b"two and more", user_id=user, base_version_id=first.version_id)
    client.push(b"new", filename="new/file", user_id=user)
    for name in ("a//b", "/a", "y" * 300, "d/still/below", "slash/"):
        client.push(b"unseen", filename=name, user_id=user)
    at = ["--pool", pool.address, "--user", user]
    with mounted(tmp_path / "now", *at), mounted(tmp_path / "then", "--at", _iso(then), *at):
        now = tmp_path / "now"
        shown = {"d/e/changed": b"two and more", "new/file": b"new", "d/still/below": b"unseen"}
        assert tree(now) == shown
        with pytest.raises(FileNotFoundError):
            (now / "nobody").stat()
        former = tmp_path / "then"
        assert {"d/e/changed": b"one"}.items() <= tree(former).items()
        assert not (former / "new/file").exists()
        with (now / "d/e/changed").open("rb") as opened:
            client.push(b"three", filename="d/e/changed", user_id=user)
            while (now / "d/e/changed").read_bytes() != b"three":
                time.sleep(0.05)
            client.push(b"another", filename="d/e/another", user_id=user)
            while "another" not in os.listdir(now / "d/e"):
                time.sleep(0.05)
            assert opened.read(1) in (b"t", b""), "it is of one version or another, and no error"
    told = (tmp_path / "now.log").read_text()
    assert "d/still is left out: it is also the name of a directory" in told
    assert "a// is left out: it is not a path" in told


def test_versions_that_are_open_at_once_are_not_mixed(pool: FunctionPool, user: str, tmp_path: Path) -> None:
    """The kernel's pages belong to a path, whatever version is read."""
    former, latter = b"a" * 400_000, b"b" * 400_000
    pool.client.push(former, filename="f", user_id=user)
    with mounted(tmp_path / "m", "--pool", pool.address, "--user", user):
        path = tmp_path / "m/f"
        with path.open("rb", buffering=0) as first:
            pool.client.push(latter, filename="f", user_id=user)
            with path.open("rb") as second:
                assert first.read() == former
                assert path.read_bytes() == latter
                assert second.read() == latter
        assert path.read_bytes() == latter


def _iso(moment_s: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment_s))}.{int(moment_s % 1 * 1000):03d}+00:00"


def test_the_marker_of_deleted_objects_is_the_gateways() -> None:
    assert HIDDEN == MARKER


def test_reads_go_on_without_a_worker_fail_without_the_pool_and_work_again_with_it(
    pool: FunctionPool, user: str, tmp_path: Path
) -> None:
    pool.await_whole()
    content = os.urandom(12 << 20)
    pool.client.push(content, filename="large", user_id=user)
    mount = tmp_path / "mount"
    options = ["--cache", "2", "--timeout", "2", "--pool", pool.address, "--user", user]
    with mounted(mount, *options), (mount / "large").open("rb", buffering=0) as file:
        assert file.read(1 << 20) == content[: 1 << 20]
        pool.workers["w0"].kill()
        assert _all_of(file, 4 << 20) == content[1 << 20 : 5 << 20]
        pool.pool_process.kill()
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pread(file.fileno(), 10, 11 << 20)
        pool.restart_pool()
        pool.start_worker("w0")
        pool.await_whole()
        assert os.pread(file.fileno(), 10, 11 << 20) == content[11 << 20 :][:10]


def _all_of(file: FileIO, count: int) -> bytes:
    found = b""
    while len(found) < count and (piece := file.read(count - len(found))):
        found += piece
    return found

"""Mounted snapshots are what was taken, for the programs that people use on directories."""

from __future__ import annotations

import hashlib
import mmap
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage
from taskworker.client.folders import ClientFiles
from taskworker.folders.embedded import StoreFiles
from taskworker.folders.ports import Files
from taskworker.folders.snapshots import Repository, forget, restore, take_snapshot
from tests.folders.trees import described, make
from tests.functions.processes import FunctionPool
from tests.gateways.fuse.mounts import mounted, needs_fuse, unmount

pytestmark = needs_fuse
LARGE = os.urandom(9_000_000)


def take(files: Files, source: Path) -> str:
    report = take_snapshot(files, source, "folder", xattrs=True, problem=lambda path, error: pytest.fail(str(error)))
    assert report.snapshot is not None
    return report.snapshot.id


def filled(source: Path) -> Path:
    make(
        source,
        {
            b"a": ("file", b"content", 0o600, 1_000_000_000_123_456_789),
            b"inner": {
                b"large": ("file", LARGE, 0o755, 5),
                b"same": ("file", b"content", 0o644, -6_000_000_001),
                b"out": ("link", b"/nowhere/at/all", 8),
                b"pipe": ("fifo", 0o600, 9),
            },
            b"empty": {},
            b"nothing": ("file", b"", 0o644, 5),
            b"not\xffutf8": ("file", b"1", 0o644, 7),
            b"x" * 255: ("file", b"long", 0o644, 7),
            b"many": {b"%d" % number: ("file", b"number %d\n" % number, 0o644, number) for number in range(1500)},
        },
    )
    os.link(source / "a", source / "inner" / "linked")
    os.setxattr(source / "a", "user.colour", b"blue\0green")
    with (source / "holes").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"island")
    return source


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A mounted snapshot of an embedded store, and the same restored."""
    place = tmp_path_factory.mktemp("taken")
    source = filled(place / "source")
    with FileStorage.open(place / "store", profile=ErasureProfile(1, 2)) as store:
        files = StoreFiles(store, "ann")
        take(files, source)
        repository = Repository(files, "folder")
        restore(repository, repository.snapshot("latest"), place / "restored", problem=lambda path, error: None)
    at = ["--store", str(place / "store"), "--user", "ann"]
    with mounted(place / "mount", "--folder", "folder", "--snapshot", "latest", *at):
        yield place / "mount", place / "restored"


def test_it_is_the_tree_that_is_restored(taken: tuple[Path, Path]) -> None:
    mount, restored = taken
    assert described(mount) == described(restored)
    assert os.getxattr(mount / "inner/linked", "user.colour") == b"blue\0green"
    assert os.listxattr(mount / "inner/same") == []
    holes = (mount / "holes").stat()
    assert 0 < holes.st_blocks * 512 < holes.st_size, "programs look for holes"


@pytest.mark.parametrize(
    "copy",
    ["cp -a --sparse=always {mount}/. {target}", "tar -C {mount} --format=posix -cSf - . | tar -C {target} -xf -"],
    ids=["cp", "tar"],
)
def test_copies_are_equal(taken: tuple[Path, Path], tmp_path: Path, copy: str) -> None:
    mount, restored = taken
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["sh", "-c", copy.format(mount=mount, target=target)], check=True)
    assert described(target) == described(restored)
    assert (target / "holes").stat().st_blocks * 512 < 1 << 20


def test_grep_and_find_see_everything(taken: tuple[Path, Path]) -> None:
    mount, _ = taken
    found = subprocess.run(["grep", "-rlx", "number 77", mount], stdout=subprocess.PIPE, check=True).stdout
    assert found.decode().strip() == f"{mount}/many/77"
    fifos = subprocess.run(["find", mount, "-type", "p"], stdout=subprocess.PIPE, check=True).stdout
    assert fifos.decode().strip() == f"{mount}/inner/pipe"


def test_mapped_and_random_reads_are_right(taken: tuple[Path, Path]) -> None:
    mount, _ = taken
    with (mount / "inner/large").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for at in (0, 8_999_000, 4_194_303, 1_048_575, 77):
            assert mapped[at : at + 1000] == LARGE[at : at + 1000]
            assert os.pread(file.fileno(), 5000, at) == LARGE[at : at + 5000]
        assert os.pread(file.fileno(), 10, len(LARGE)) == b""


def test_many_read_at_once(taken: tuple[Path, Path]) -> None:
    mount, _ = taken

    def digest(number: int) -> str:
        if number % 2:
            return (mount / f"many/{number}").read_text()
        with (mount / "inner/large").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(digest, range(64)))
    expected = hashlib.sha256(LARGE).hexdigest()
    assert found == [f"number {number}\n" if number % 2 else expected for number in range(64)]


def test_nothing_can_be_written(taken: tuple[Path, Path]) -> None:
    mount, _ = taken
    for change in (
        lambda: (mount / "new").write_bytes(b""),
        lambda: (mount / "a").write_bytes(b""),
        lambda: (mount / "a").unlink(),
        lambda: (mount / "a").chmod(0o777),
        lambda: (mount / "a").rename(mount / "b"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    with pytest.raises(FileNotFoundError):
        (mount / "no such file").stat()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_other_users_cannot_read(taken: tuple[Path, Path]) -> None:
    mount, restored = taken
    let_others_enter(restored)  # so that only the mount is in the way
    assert b"Permission denied" in errors_of_nobody("ls", mount)


def let_others_enter(directory: Path) -> None:
    for path in (directory, *directory.parents):
        path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)


def errors_of_nobody(*command: str | Path) -> bytes:
    other = pwd.getpwnam("nobody")  # without root's groups, too, to which the modes of directories say other things
    return subprocess.run(
        command, user=other.pw_uid, group=other.pw_gid, extra_groups=[], capture_output=True, check=False
    ).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_other_users_can_read_what_modes_allow_if_they_are_let(pool: FunctionPool, user: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, {b"all": ("file", b"all", 0o644, 5), b"mine": ("file", b"mine", 0o600, 5)})
    take(ClientFiles(pool.client, user), source)
    let_others_enter(tmp_path)
    at = ["--folder", "folder", "--snapshot", "latest", "--pool", pool.address, "--user", user]
    with mounted(tmp_path / "mount", "--allow-other", *at):
        assert errors_of_nobody("cat", tmp_path / "mount/all") == b""
        assert b"Permission denied" in errors_of_nobody("cat", tmp_path / "mount/mine")


def test_snapshots_appear_and_go_while_all_are_mounted(pool: FunctionPool, user: str, tmp_path: Path) -> None:
    files = ClientFiles(pool.client, user)
    source = tmp_path / "source"
    make(source, {b"%d" % number: ("file", b"%d" % number * 100, 0o644, 5) for number in range(50)})
    first = take(files, source)
    mount = tmp_path / "mount"
    with mounted(mount, "--folder", "folder", "--pool", pool.address, "--user", user):
        (only,) = (name for name in os.listdir(mount) if name != "latest")
        assert only.endswith(first[:12])
        assert (mount / "latest" / "7").read_bytes() == b"7" * 100
        make(source, {b"new": ("file", b"new", 0o644, 5)})
        second = take(files, source)
        while len(os.listdir(mount)) < 3:
            pass
        assert (mount / os.readlink(mount / "latest")).name.endswith(second[:12])
        repository = Repository(files, "folder")
        forget(repository, [repository.snapshot(second)])
        assert (mount / "latest/new").read_bytes() == b"new"
        for number in range(50):  # wherever they have been moved
            assert (mount / f"latest/{number}").read_bytes() == b"%d" % number * 100
        while len(os.listdir(mount)) > 2:
            pass


def test_signals_unmount_and_a_killed_mount_says_what_to_do(taken: tuple[Path, Path], tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "store"), "--user", "ann"]
    with FileStorage.open(tmp_path / "store", profile=ErasureProfile(1, 1)) as opened:
        opened.push(b"content", filename="name", user_id="ann")
    mount = tmp_path / "mount"
    with mounted(mount, *store) as process:
        assert (mount / "name").read_bytes() == b"content"
        assert process.stop() == 0
        assert os.listdir(mount) == []
    mount.rmdir()
    with mounted(mount, *store) as process:
        process.kill()
        again = subprocess.run(
            [sys.executable, "-m", "taskworker", "mount", mount, *store], stderr=subprocess.PIPE, check=False
        )
        assert again.returncode == 1
        assert b"fusermount3 -u" in again.stderr
        unmount(mount)
        assert os.listdir(mount) == []

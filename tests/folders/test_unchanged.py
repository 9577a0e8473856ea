"""Snapshots with a cache of directories find every change, and are the same as without it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from storage import FileStorage
from taskworker.folders import FolderDamaged, scanning
from taskworker.folders.embedded import StoreFiles
from taskworker.folders.entries import Entry
from taskworker.folders.ports import Files
from taskworker.folders.rules import Exclusions
from taskworker.folders.snapshots import Repository, TakeReport, forget, restore, take_snapshot
from tests.folders.trees import described, make, trees

FILE = ("file", b"content", 0o644, 5)
Problems = dict[bytes, Exception]


class Folder:
    """A directory and the folder that its snapshots go to, with a cache."""

    def __init__(self, files: Files, home: Path, name: str = "folder") -> None:
        self.files = files
        self.source = home / "source"
        self.source.mkdir(exist_ok=True)
        self.cache = home / "cache"
        self.home = home
        self.name = name

    def take(self, problems: Problems | None = None, **options: Any) -> TakeReport:
        """Take a snapshot; another one without the cache must be the same, but for what was read."""
        found: Problems = {} if problems is None else problems
        report = take_snapshot(
            self.files, self.source, self.name, cache=self.cache, problem=found.__setitem__, **options
        )
        assert problems is not None or not found
        options.pop("progress", None)
        plain = take_snapshot(self.files, self.source, f"{self.name}-plain", problem=lambda *told: None, **options)
        assert counts(report) == counts(plain)
        assert self.content(self.name) == self.content(self.name + "-plain")
        return report

    def content(self, name: str) -> dict[bytes, Entry]:
        """All entries of the newest snapshot."""
        from taskworker.folders.snapshots.restoring import walk

        repository = Repository(self.files, name)
        problems: Problems = {}
        found = walk(repository, repository.snapshot("latest").root, problems.__setitem__)
        entries = {b"/".join(path): entry for path, entry in found}
        assert not problems
        return entries

    def restored(self) -> Path:
        target = Path(tempfile.mkdtemp(dir=self.home))
        repository = Repository(self.files, self.name)
        problems: Problems = {}
        restore(repository, repository.snapshot("latest"), target, problem=problems.__setitem__)
        assert not problems
        return target


def counts(report: TakeReport) -> tuple[int, ...]:
    return report.files, report.size, report.others, report.failed, report.skipped


@pytest.fixture
def folder(store_files: Files, tmp_path: Path) -> Folder:
    return Folder(store_files, tmp_path)


def files_of(prefix: str, count: int) -> dict[bytes, Any]:
    return {f"{prefix}{number}".encode(): ("file", b"%d" % number, 0o644, 5) for number in range(count)}


def tree() -> dict[bytes, Any]:
    return {
        "目录".encode(): files_of("文件", 3) | {b"inner": files_of("i", 2) | {b"link": ("link", b"i0", 7)}},
        b"not\xffutf8": {b"\xfe": FILE, b"deep": {b"deeper": {b"deepest": files_of("d", 2)}}},
        b"empty": {},
        b"files": files_of("f", 5) | {b"pipe": ("fifo", 0o600, 9)},
        b"top": FILE,
    }


def rewritten(path: Path) -> None:
    """Other content of the same size and time of change, as some programs write it."""
    status = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    """Another file in its place, with the same name, size and times."""
    status = path.stat()
    other = path.with_name("new")
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


DEEP = "not\udcffutf8/deep/deeper/deepest"
CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda source: (source / DEEP / "d0").write_bytes(b"longer"),
    "content of the same size": lambda source: rewritten(source / "目录/inner/i1"),
    "another file": lambda source: replaced(source / DEEP / "d1"),
    "time": lambda source: os.utime(source / "files/f1", ns=(6, 6)),
    "mode": lambda source: (source / "目录/文件1").chmod(0o600),
    "mode of a directory": lambda source: (source / DEEP).chmod(0o700),
    "mode of the root": lambda source: source.chmod(0o750),
    "time of a directory": lambda source: os.utime(source / "empty", ns=(6, 6)),
    "new file": lambda source: (source / "empty/new").write_bytes(b""),
    "new directory": lambda source: (source / DEEP / "new").mkdir(),
    "gone": lambda source: (source / DEEP / "d0").unlink(),
    "gone directory": lambda source: shutil.rmtree(source / "not\udcffutf8/deep"),
    "renamed": lambda source: (source / "files/f1").rename(source / "files/f1-renamed"),
    "renamed directory": lambda source: (source / "目录").rename(source / "目录2"),
    "moved": lambda source: (source / "files/f1").rename(source / "empty/f1"),
    "exchanged": lambda source: exchange(source / "files/f1", source / "files/f2"),
    "exchanged directories": lambda source: exchange(source / "目录", source / DEEP),
    "linked": lambda source: (source / "files/linked").hardlink_to(source / "top"),
    "target of a link": lambda source: relinked(source / "目录/inner/link"),
    "file in place of a directory": lambda source: without(source / "empty").write_bytes(b"1"),
    "directory in place of a file": lambda source: without(source / "top").mkdir(),
    "link in place of a directory": lambda source: without(source / "empty").symlink_to("files"),
}


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def without(path: Path) -> Path:
    """A path, after what is there is gone."""
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    return path


def relinked(link: Path) -> None:
    link.unlink()
    link.symlink_to("i1")
    os.utime(link, ns=(7, 7), follow_symlinks=False)


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_found_and_the_rest_is_known(folder: Folder, name: str) -> None:
    make(folder.source, tree())
    folder.take()
    assert folder.take().read == 0
    CHANGES[name](folder.source)
    assert folder.take().read <= 7, "those in directories that were renamed"
    assert described(folder.restored()) == described(folder.source)
    again = folder.take()
    assert (again.read, again.added) == (0, 0)
    assert described(folder.restored()) == described(folder.source)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees(text_names=False), trees(text_names=False))
def test_any_two_trees_after_each_other(store: FileStorage, one: dict[bytes, Any], two: dict[bytes, Any]) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = Folder(StoreFiles(store, "any"), Path(home), f"folder-{os.urandom(8).hex()}")
        for each in (one, two):
            shutil.rmtree(folder.source)
            make(folder.source, each)
            folder.take()
            folder.take()
            assert described(folder.restored()) == described(folder.source)


def test_an_unchanged_folder_is_not_read_from_the_store(folder: Folder) -> None:
    make(folder.source, tree())
    folder.take()
    loaded: list[bytes] = []
    load = Repository.load

    def noted(repository: Repository, blob: bytes, **options: bool) -> bytes:
        loaded.append(blob)
        return load(repository, blob, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "load", noted)
        take_snapshot(folder.files, folder.source, "folder", cache=folder.cache)
        assert not loaded
        (folder.source / DEEP / "d0").write_bytes(b"changed")
        take_snapshot(folder.files, folder.source, "folder", cache=folder.cache)
        assert len(loaded) == 3, "the directory, and those above it that have files, too"
    assert described(folder.restored()) == described(folder.source)


def test_a_file_written_twice_in_one_tick_is_found(folder: Folder) -> None:
    make(folder.source, {b"a": FILE, b"d": {b"b": FILE}})
    folder.take()
    a, b = folder.source / "a", folder.source / "d/b"
    for number in range(0, 20, 2):
        a.write_bytes(b"%08d" % number)

        def write(_files: int, _size: int, waiting: list[int] = [number, number + 1]) -> None:  # noqa: B006
            if waiting:  # first before it is found, then just after it was read
                b.write_bytes(b"%08d" % waiting.pop(0))

        take_snapshot(folder.files, folder.source, "folder", cache=folder.cache, progress=write)
        folder.take()
        assert (folder.restored() / "d/b").read_bytes() == b.read_bytes() == b"%08d" % (number + 1)


def test_other_rules_hold_at_once(folder: Folder) -> None:
    make(folder.source, {b"d": {b"e": files_of("f", 3) | {b"g": files_of("f", 2)}}, b"f1": FILE})
    folder.take()
    folder.take(exclusions=Exclusions(patterns=("f1",)))
    assert {b"d/e/f1", b"d/e/g/f1", b"f1"}.isdisjoint(folder.content("folder"))
    folder.take()
    assert {b"d/e/f1", b"d/e/g/f1", b"f1"} <= folder.content("folder").keys()
    (folder.source / "d/.twignore").write_text("f1\n")
    folder.take()
    assert {b"d/e/f1", b"d/e/g/f1"}.isdisjoint(folder.content("folder"))
    folder.take()
    (folder.source / "d/e/g/f0").write_bytes(b"changed below rules")
    folder.take()
    (folder.source / "d/.twignore").write_text("f0\n")
    folder.take()
    assert {b"d/e/f0", b"d/e/g/f0"}.isdisjoint(folder.content("folder"))
    (folder.source / "d/.twignore").unlink()
    folder.take()
    assert {b"d/e/f0", b"d/e/f1", b"d/e/g/f1"} <= folder.content("folder").keys()


def test_rules_of_a_directory_with_a_problem_end(folder: Folder) -> None:
    make(folder.source, {b"d": {b".twignore": ("file", b"f0\n", 0o644, 5), b"e": files_of("f", 2)}})
    long = folder.source / "d" / ("x" * 200)
    problems: Problems = {}

    def grow(_files: int, _size: int) -> None:
        with long.open("ab") as file:
            file.write(b"x" * 5_000_000)

    long.write_bytes(b"x" * 5_000_000)
    options: dict[str, Any] = {"problem": problems.__setitem__, "progress": grow}
    take_snapshot(folder.files, folder.source, "folder", cache=folder.cache, **options)
    assert problems.keys() == {b"d/" + b"x" * 200}
    (folder.source / "d/.twignore").unlink()
    folder.take({})
    assert b"d/e/f0" in folder.content("folder")


def test_caches_are_left_out_and_come_back(folder: Folder) -> None:
    make(folder.source, {b"cache": {b"a": FILE, b"d": {b"b": FILE}}})
    tag = folder.source / "cache/CACHEDIR.TAG"
    exclusions = Exclusions(caches=True)
    folder.take(exclusions=exclusions)
    tag.write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55")
    folder.take(exclusions=exclusions)
    assert folder.content("folder").keys() == {b"cache", b"cache/CACHEDIR.TAG"}
    folder.take(exclusions=exclusions)
    tag.unlink()
    folder.take(exclusions=exclusions)
    assert b"cache/d/b" in folder.content("folder")


def test_sockets_and_problems_are_told_each_time(folder: Folder) -> None:
    make(folder.source, {b"d": {b"a": FILE}, b"e": {b"b": FILE}})
    os.mknod(folder.source / "e/socket", stat.S_IFSOCK | 0o600)
    name = b"/".join([b"x" * 200] * 21)
    above = os.open(folder.source / "d", os.O_RDONLY)
    try:
        for part in name.split(b"/"):  # its path is longer than any path can be
            os.mkdir(part, dir_fd=above)
            below = os.open(part, os.O_RDONLY, dir_fd=above)
            os.close(above)
            above = below
    finally:
        os.close(above)
    for _ in range(3):
        problems: Problems = {}
        report = folder.take(problems)
        assert (len(problems), report.failed, report.skipped) == (1, 1, 1)


def test_what_is_in_a_directory_that_cannot_be_taken_is_not_in_another(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder.source, {b"a": {b"f": FILE}, b"b": {}})
    try:
        os.setxattr(folder.source / "a", "user.x", b"1")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    monkeypatch.setattr(scanning, "XATTRS_MAX", 0)
    problems: Problems = {}
    folder.take(problems, xattrs=True)
    assert problems.keys() == {b"a"}
    assert folder.content("folder").keys() == {b"b"}


def test_what_was_forgotten_is_stored_again(folder: Folder) -> None:
    make(folder.source, tree())
    folder.take()
    repository = Repository(folder.files, "folder")
    forget(repository, [])
    folder.take()
    assert described(folder.restored()) == described(folder.source)


def test_a_cache_of_another_folder_or_a_damaged_one_is_of_no_use(folder: Folder) -> None:
    make(folder.source, tree())
    folder.take()
    other = Folder(folder.files, folder.home, "other")
    other.take()
    assert described(other.restored()) == described(other.source)
    good = folder.cache.read_bytes()
    for data in (b"", b"x" * 100, good[:-1], good[:40] + b"x" + good[41:]):
        folder.cache.write_bytes(data)
        assert folder.take().read == 0
        assert folder.cache.read_bytes() != data
    folder.cache.chmod(0o666)
    assert folder.take().read == 0
    folder.cache.unlink()
    folder.cache.mkdir()
    assert folder.take().read == 0, "and that it cannot be written is no error"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be a user that has no name")
def test_a_login_without_a_home_has_no_cache(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, pwd\n"
        "from taskworker.folders.snapshots.directory_cache import cache_path\n"
        "os.setuid(54321)\n"
        "print(cache_path(pathlib.Path('/'), 'place', 'user', 'folder'))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    for named, expected in (({}, "None"), ({"XDG_CACHE_HOME": str(tmp_path)}, str(tmp_path))):
        ended = subprocess.run(
            [sys.executable, "-c", program], env=environment | named, capture_output=True, text=True, check=True
        )
        assert ended.stdout.startswith(expected)


def test_an_index_that_is_gone_is_told_though_nothing_changed(folder: Folder) -> None:
    make(folder.source, tree())
    take_snapshot(folder.files, folder.source, "folder", cache=folder.cache)
    (index,) = Repository(folder.files, "folder").index_containers
    repository = Repository(folder.files, "folder")
    folder.files.delete(repository.head(index))
    with pytest.raises(FolderDamaged, match="gone"):
        take_snapshot(folder.files, folder.source, "folder", cache=folder.cache)

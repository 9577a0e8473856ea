"""What fsspec's suite does not cover: versions, transactions, ranges, odd names, errors, changes of others."""

from __future__ import annotations

import base64
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from storage import FileStorage, StorageError, Version
from taskworker.gateways.fsspec import PoolFileSystem, StoreFileSystem, VersionedFileSystem
from taskworker.gateways.fsspec.shared import Shared
from taskworker.gateways.fsspec.store_files import StoreFiles
from tests.functions.processes import FunctionPool
from tests.gateways.conftest import write

MIB = 1024 * 1024
ODD_NAMES = [
    "数据/二〇二六年.csv",
    "100%/a%20b.txt",
    "#hash/?query=1&x=[y]*.txt",
    " leading and trailing ",
    "back\\slash\nnew line",
    "plain:with@signs;and,commas!",
]


class RecordingFiles(StoreFiles):
    """Notes what is asked of the store."""

    def __init__(self, store: FileStorage, user_id: str) -> None:
        super().__init__(store, user_id)
        self.reads: list[tuple[int, int]] = []
        self.pages = 0

    def read(self, version: Version, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return super().read(version, offset, length)

    def page(self, prefix: str, after: str | None, limit: int) -> list[Version]:
        self.pages += 1
        return super().page(prefix, after, limit)


class RecordedFileSystem(StoreFileSystem):
    def __init__(self, store: FileStorage, user: str, **options: Any) -> None:
        super().__init__(store=store, user=user, **options)
        self.recorded = RecordingFiles(store, user)

    @property
    def files(self) -> RecordingFiles:
        return self.recorded


@pytest.fixture
def recorded(store: FileStorage, user: str) -> RecordedFileSystem:
    return RecordedFileSystem(store, user, skip_instance_cache=True)


# -- reading ---------------------------------------------------------------------------------------


def test_a_part_of_a_file_is_read_alone(recorded: RecordedFileSystem) -> None:
    content = bytes(range(256)) * 4096 * 8
    recorded.pipe("big", content)
    assert recorded.cat_file("big", 5 * MIB, 5 * MIB + 10) == content[5 * MIB : 5 * MIB + 10]
    assert recorded.recorded.reads == [(5 * MIB, 10)]
    with recorded.open("big") as file:
        file.seek(3 * MIB)
        assert file.read(100) == content[3 * MIB : 3 * MIB + 100]
        file.seek(-7, 2)
        assert file.read() == content[-7:]
    assert [offset for offset, _ in recorded.recorded.reads[1:]] == [3 * MIB, 8 * MIB - 7]
    assert sum(length for _, length in recorded.recorded.reads) < MIB


def test_what_is_read_in_order_is_read_ahead_and_once(recorded: RecordedFileSystem) -> None:
    content = bytes(range(256)) * 4096 * 8
    recorded.pipe("big", content)
    with recorded.open("big") as file:
        assert b"".join(iter(lambda: file.read(100_000), b"")) == content
    reads = sorted(recorded.recorded.reads)
    assert sum(length for _, length in reads) == len(content)
    assert len(reads) < 10
    assert max(length for _, length in reads) > 2 * MIB


def test_bytes_are_sliced_as_in_python(fs: VersionedFileSystem) -> None:
    content = bytes(range(200))
    fs.pipe("f", content)
    for start, end in [(None, None), (0, 0), (5, None), (None, 7), (-3, None), (None, -3), (190, 900), (300, 400)]:
        assert fs.cat_file("f", start, end) == content[start:end]
    parts = fs.cat_ranges(["f", "f", "gone"], [0, 10, 0], [3, 12, 1])
    assert parts[:2] == [content[:3], content[10:12]]
    assert isinstance(parts[2], FileNotFoundError)
    assert fs.head("f", 4) + fs.tail("f", 4) == content[:4] + content[-4:]


def test_former_versions_can_be_read(fs: VersionedFileSystem) -> None:
    for content in (b"one", b"two!", b"three"):
        fs.pipe("f", content)
    newest, _, oldest = fs.versions("f")
    assert [fs.cat_file("f", version_id=each["version_id"]) for each in (oldest, newest)] == [b"one", b"three"]
    with fs.open("f", version_id=oldest["version_id"]) as file:
        fs.pipe("f", b"four")
        assert file.read() == b"one"
    assert fs.info("f", version_id=oldest["version_id"])["size"] == 3
    fs.cp_file("f", "f", version_id=oldest["version_id"])
    assert fs.cat("f") == b"one"
    assert fs.created("f") <= fs.modified("f")
    with pytest.raises(FileNotFoundError):
        fs.cat_file("f", version_id="0" * 64)


# -- many files ------------------------------------------------------------------------------------


def test_many_files_at_once(fs: VersionedFileSystem, tmp_path: Path) -> None:
    contents = {f"many/{number % 7}/{number}": str(number).encode() * 100 for number in range(210)}
    contents["many/large"] = b"l" * (3 * MIB)
    fs.pipe(contents)
    assert fs.cat("many", recursive=True) == contents
    assert fs.cat(["many/0/0", "gone"], on_error="omit") == {"many/0/0": contents["many/0/0"]}
    assert fs.find("many") == sorted(contents)
    assert fs.du("many") == sum(map(len, contents.values()))
    assert sorted(fs.ls("many", detail=False)) == [*(f"many/{number}" for number in range(7)), "many/large"]
    fs.get("many", str(tmp_path / "got"), recursive=True)
    assert {name: (tmp_path / "got" / name.removeprefix("many/")).read_bytes() for name in contents} == contents
    fs.put(str(tmp_path / "got"), "again", recursive=True)
    fs.mv("again", "moved", recursive=True)
    assert fs.cat("moved", recursive=True) == {f"moved{name.removeprefix('many')}": contents[name] for name in contents}
    fs.rm(["many", "moved"], recursive=True)
    assert fs.find("") == []


def test_listing_a_directory_skips_what_is_deep_in_it(recorded: RecordedFileSystem) -> None:
    recorded.pipe({f"d/deep/{number:04}/x": b"" for number in range(1100)} | {"d/deeper": b"", "d/deep.txt": b""})
    recorded.recorded.pages = 0
    assert recorded.ls("d", detail=False) == ["d/deep", "d/deep.txt", "d/deeper"]
    assert recorded.recorded.pages <= 3


def test_copies_share_their_chunks(store: FileStorage, store_fs: VersionedFileSystem) -> None:
    content = bytes(range(256)) * 4096 * 3 + b"and a short chunk"
    store_fs.pipe("f", content)
    before = store.stats().stored_bytes
    store_fs.cp("f", "g")
    assert store_fs.cat("g") == content
    assert store.stats().stored_bytes - before < MIB


def test_copies_in_a_pool_are_equal(pool: FunctionPool, pool_fs: VersionedFileSystem) -> None:
    content = bytes(range(256)) * 4096 * 3 + b"and a short chunk"
    pool_fs.pipe({"f": content, "small": b"s"})
    pool_fs.cp_file("f", "g")
    pool_fs.cp_file("small", "tiny")
    assert [pool_fs.cat("g"), pool_fs.cat("tiny")] == [content, b"s"]


def test_files_can_be_sealed_with_a_key_of_ones_own(pool: FunctionPool, user: str, tmp_path: Path) -> None:
    key = write(tmp_path / "key", base64.b64encode(os.urandom(32)))
    key.chmod(0o600)
    sealed = PoolFileSystem(pool.address, user, key=str(key), skip_instance_cache=True)
    content = bytes(range(256)) * 4096 + b"and a short chunk"
    sealed.pipe({"d/f": content, "d/g": b"x"})
    sealed.cp("d/f", "d/copy")
    assert sealed.cat("d", recursive=True) == {"d/copy": content, "d/f": content, "d/g": b"x"}
    assert all("d/" not in version.filename for version in pool.client.list_files(user_id=user))


# -- writing ---------------------------------------------------------------------------------------


def test_content_is_visible_once_the_file_is_closed(fs: VersionedFileSystem) -> None:
    with fs.open("f", "wb") as file:
        file.write(b"x" * (9 * MIB))
        file.seek(0)
        file.write(b"first")
        assert not fs.exists("f")
    assert fs.cat_file("f", 0, 6) == b"firstx"
    assert fs.info("f")["size"] == 9 * MIB


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_an_error_while_writing_leaves_nothing(fs: VersionedFileSystem, mode: str) -> None:
    def fail() -> None:
        with fs.open("f", mode) as file:
            file.write(b"half" if mode == "wb" else "half")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert not fs.exists("f")


def test_appending(fs: VersionedFileSystem) -> None:
    content = bytes(range(256)) * 4096 + b"rest"
    fs.pipe("f", content)
    for more in (b"more", b"y" * MIB):
        with fs.open("f", "ab") as file:
            assert file.tell() == len(content)
            file.write(more)
        content += more
    assert fs.cat("f") == content
    with fs.open("new", "a") as text:
        text.write("línea")
    assert fs.open("new", "r").read() == "línea"


def test_appends_at_the_same_time_lose_nothing(fs: VersionedFileSystem) -> None:
    fs.pipe("log", b"")

    def append(number: int) -> None:
        with fs.open("log", "ab") as file:
            file.write(b"%d\n" % number)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(append, range(3)))
    assert sorted(fs.cat("log").split()) == [b"0", b"1", b"2"]


def test_a_transaction_ends_with_all_files_or_none(fs: VersionedFileSystem) -> None:
    fs.pipe("old", b"old")
    with fs.transaction:
        fs.pipe({"a": b"1", "b": b"2"})
        with fs.open("old", "ab") as file:
            file.write(b"er")
        with fs.open("c", "w") as file:
            file.write("3")
        assert fs.find("") == ["old"]
    assert fs.cat("", recursive=True) == {"a": b"1", "b": b"2", "c": b"3", "old": b"older"}

    def fail() -> None:
        with fs.transaction:
            fs.pipe("d", b"4")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert not fs.exists("d")
    fs.pipe("e", b"5")
    assert fs.cat("e") == b"5"


def test_files_that_are_there_are_not_made_anew(fs: VersionedFileSystem) -> None:
    fs.pipe("f", b"1")
    with pytest.raises(FileExistsError):
        fs.open("f", "xb")
    late = fs.open("g", "xb")
    late.write(b"late")
    fs.pipe("g", b"early")
    with pytest.raises(FileExistsError):
        late.close()
    assert fs.cat("g") == b"early"


# -- what others do --------------------------------------------------------------------------------


def test_changes_of_others_are_seen_at_once(pool: FunctionPool, pool_fs: VersionedFileSystem, user: str) -> None:
    assert pool_fs.find("") == []
    version = pool.client.push(b"1", filename="d/f", user_id=user)
    assert (pool_fs.ls("d", detail=False), pool_fs.cat("d/f")) == (["d/f"], b"1")
    pool.client.push(b"22", filename="d/f", user_id=user)
    assert (pool_fs.info("d/f")["size"], pool_fs.cat("d/f")) == (2, b"22")
    before = pool_fs.ukey("d/f")
    pool.client.push(b"333", filename="d/f", user_id=user)
    assert pool_fs.ukey("d/f") != before
    pool.client.delete(version.file_id, user_id=user)
    assert not pool_fs.isdir("d")


def test_names_that_are_no_paths_are_left_alone(store: FileStorage, store_fs: VersionedFileSystem, user: str) -> None:
    for name in ("/absolute", "d//twice", "d/f", "marked/"):
        store.push(b"x", filename=name, user_id=user)
    assert store_fs.find("") == ["d/f"]
    assert store_fs.ls("/", detail=False) == ["d", "marked"]
    assert store_fs.isdir("marked")
    store_fs.rm("d", recursive=True)
    store_fs.rmdir("marked")
    assert [each.filename for each in store.list_files(user_id=user)] == ["/absolute", "d//twice"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(fs: VersionedFileSystem, name: str) -> None:
    fs.pipe(name, b"content")
    assert fs.find("") == [name]
    assert fs.cat_file(f"//{name}/") == b"content"
    fs.cp_file(name, f"{name}/copy")
    assert fs.find(name) == [f"{name}/copy"]
    fs.rm_file(name)
    assert fs.ls(name, detail=False) == [f"{name}/copy"]


def test_other_processes_get_a_connection_of_their_own(pool_fs: VersionedFileSystem) -> None:
    pool_fs.pipe("f", b"from here")
    assert pickle.loads(pickle.dumps(pool_fs)).cat("f") == b"from here"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        assert processes.submit(pool_fs.cat, "f").result() == b"from here"


def test_a_process_that_is_killed_leaves_nothing_visible(pool: FunctionPool, pool_fs: VersionedFileSystem) -> None:
    script = (
        "import os, signal, sys; from taskworker.gateways.fsspec import PoolFileSystem\n"
        "file = PoolFileSystem(sys.argv[1], sys.argv[2]).open('half', 'wb')\n"
        "file.write(bytes(10 << 20)); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    user: str = pool_fs.user
    assert subprocess.run([sys.executable, "-c", script, pool.address, user]).returncode == -9
    assert pool_fs.find("") == []


def test_large_files_take_little_memory(tmp_path: Path) -> None:
    script = """
import resource, sys
from taskworker.gateways.fsspec import StoreFileSystem
fs = StoreFileSystem(sys.argv[1], user="ann", create=True)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
fs.pipe("small", b"x" * (20 << 20))
fs.open("small").read()
before = peak()
with fs.open("big", "wb") as file:
    for number in range(120):
        file.write(bytes([number]) * (1 << 20))
with fs.open("big") as file:
    for number in range(120):
        assert file.read(1 << 20) == bytes([number]) * (1 << 20)
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 60


# -- errors and URLs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        *(
            (method, "gone", FileNotFoundError)
            for method in ("cat", "cat_file", "open", "info", "rm", "ls", "modified")
        ),
        *((method, "d", IsADirectoryError) for method in ("cat_file", "open", "rm", "ukey")),
        *(("mkdir", path, FileExistsError) for path in ("d", "d/f")),
    ],
)
def test_errors_are_those_of_files(store_fs: VersionedFileSystem, method: str, path: str, error: type[OSError]) -> None:
    store_fs.pipe("d/f", b"x")
    with pytest.raises(error):
        getattr(store_fs, method)(path)


def test_other_errors_tell_their_cause(fs: VersionedFileSystem) -> None:
    fs.pipe("d/f", b"x")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("d")
    with pytest.raises(ValueError, match="modes r, w, a and x"):
        fs.open("d/f", "r+b")
    with pytest.raises(OSError, match=r"path component") as caught:
        fs.pipe("d/../f", b"x")
    assert isinstance(caught.value.__cause__, StorageError)


def test_a_pool_that_is_away_is_not_a_missing_file() -> None:
    fs = PoolFileSystem("127.0.0.1:1", "ann", timeout_s=1.0, skip_instance_cache=True)
    with pytest.raises((ConnectionError, TimeoutError)):
        fs.exists("f")


def test_a_token_that_is_not_known_is_refused(pool: FunctionPool) -> None:
    fs = PoolFileSystem(pool.address, "ann", token="tu1.nobody", skip_instance_cache=True)
    with pytest.raises(PermissionError):
        fs.ls("")


def test_urls_find_the_filesystem(pool: FunctionPool, user: str, tmp_path: Path) -> None:
    with fsspec.open("taskworker://d/f.txt", "w", address=pool.address, user=user) as file:
        file.write("through the pool")
    assert pool.client.list_files(user_id=user)[0].filename == "d/f.txt"
    directory = tmp_path / "deep" / "store"
    fsspec.filesystem("taskworker+store", path=str(directory), user=user, create=True).pipe("d/f.txt", b"in the store")
    found, path = fsspec.core.url_to_fs(f"taskworker+store://{directory}/d/f.txt", user=user)
    assert (path, found.cat(path)) == ("d/f.txt", b"in the store")
    assert found.unstrip_protocol(path) == f"taskworker+store://{directory}/d/f.txt"
    with pytest.raises(FileNotFoundError, match="no store on this path"):
        fsspec.core.url_to_fs(f"taskworker+store://{tmp_path}/other/f")


def test_files_and_directories_that_are_put(fs: VersionedFileSystem, tmp_path: Path) -> None:
    write(tmp_path / "a" / "f", b"1")
    write(tmp_path / "b" / "f", b"2")
    fs.put([str(tmp_path / "a" / "f"), str(tmp_path / "b" / "f")], ["x", "y/z"])
    assert fs.cat("", recursive=True) == {"x": b"1", "y/z": b"2"}
    with (tmp_path / "out").open("wb") as out:
        fs.get_file("y/z", out)
    assert (tmp_path / "out").read_bytes() == b"2"


def test_moving_a_file_over_itself_keeps_it(fs: VersionedFileSystem) -> None:
    fs.pipe({"d/f": b"1", "d/g": b"2"})
    fs.mv("d/f", "/d/f")
    fs.mv("d/f", "d")
    fs.mv("d", "d/inner", recursive=True)
    assert fs.cat("", recursive=True) == {"d/inner/f": b"1", "d/inner/g": b"2"}


def test_filesystems_may_be_dropped_while_others_connect() -> None:
    """The garbage collector runs at any moment, also while something is being opened."""
    shared: Shared[io.BytesIO] = Shared()
    first = shared.take("first", io.BytesIO)

    def opened() -> io.BytesIO:
        shared.give_back("first", os.getpid())
        return io.BytesIO()

    assert not shared.take("second", opened).closed
    assert first.closed

"""Snapshots of a store that another process has open."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from storage import FormatError, InvalidArgument
from storage.snapshot import take_snapshot
from storage.system.lmdb_env import Environment
from storage.system.lmdb_origin import DATA_FILE, Past, past_of
from tests.storage.helpers import USER, content, lose_catalog, open_store, push, python_environment

WRITER = """
import sys
from pathlib import Path
from tests.storage.helpers import content, open_store, push
store = open_store(Path(sys.argv[1]))
for number in range(100_000):
    push(store, content(number, 300), f"file {number}")
    print(number, flush=True)
"""
SHORT_OF_ROOM = """
import resource, sys
from pathlib import Path
from storage import StoreFull
from storage.snapshot import take_snapshot
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    take_snapshot(Path(sys.argv[1]), Path(sys.argv[2]))
except StoreFull as error:
    print(error)
"""


@pytest.fixture
def root(scratch: Path) -> Path:
    return scratch / "store"


@pytest.fixture
def shelf(scratch: Path) -> Path:
    """The directory for snapshots."""
    path = scratch / "备份"
    path.mkdir()
    return path


@contextmanager
def writer(root: Path) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[int]]]:
    """Run a process that pushes files until it is killed; return the numbers of acknowledged files."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root)], env=python_environment(), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield process, map(int, process.stdout)
        finally:
            process.kill()


def test_all_that_was_acknowledged_before_is_in_it(root: Path, shelf: Path) -> None:
    acknowledged: set[str] = set()
    before: list[set[str]] = []
    with writer(root) as (process, numbers):
        for round_ in range(3):
            acknowledged |= {f"file {next(numbers)}" for _ in range(60)}
            before.append(set(acknowledged))
            target = shelf / f"第{round_}次"
            assert take_snapshot(root, target).databases == ["catalog"]
            assert past_of(target / "catalog") is Past.SAME
        process.kill()
        acknowledged |= {f"file {number}" for number in numbers}
    for round_ in range(3):
        lose_catalog(root)
        shutil.copytree(shelf / f"第{round_}次" / "catalog", root / "catalog")
        with open_store(root) as store:
            names = {file.filename for file in store.list_files(user_id=USER)}
            assert names >= before[round_]
            assert store.behind or names >= acknowledged
    with open_store(root) as store:
        if store.behind:
            store.rebuild()
        for file in store.list_files(user_id=USER):
            assert store.get(file.file_id, user_id=USER) == content(int(file.filename.split()[1]), 300)
            acknowledged.discard(file.filename)
    assert not acknowledged


def test_one_commit_later_is_told(root: Path, shelf: Path) -> None:
    """The last commit before the catalog was lost."""
    with open_store(root) as store:
        push(store, b"one", "first")
    take_snapshot(root, shelf / "closed")
    program = (
        "import sys; from pathlib import Path; from tests.storage.helpers import open_store, push\n"
        "with open_store(Path(sys.argv[1])) as store:\n"
        "    push(store, b'two', 'second'); print(flush=True); input(); push(store, b'three', 'third')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(root)],
        env=python_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        take_snapshot(root, shelf / "used")
        process.communicate(b"\n")
    assert process.returncode == 0
    for name, known in (("closed", ["first"]), ("used", ["first", "second"])):
        lose_catalog(root)
        shutil.copytree(shelf / name / "catalog", root / "catalog")
        with open_store(root) as store:
            assert [file.filename for file in store.list_files(user_id=USER)] == known
            assert store.behind


def test_of_a_store_that_is_closed(root: Path, shelf: Path) -> None:
    with open_store(root) as store:
        file = push(store, b"one", "file")
    (root / "names").write_text("small")
    with closing(Environment(root / "more", ("table",))) as more:
        more.write(lambda txn: txn.put(b"key", b"value", db=more.databases["table"]))
    taken = take_snapshot(root, shelf / "copy", databases=["more", "none"], files=["names", "no file"])
    assert (taken.databases, taken.files) == (["catalog", "more"], ["names"])
    assert taken.bytes_used == sum(path.stat().st_size for path in taken.path.rglob("*") if path.is_file())
    assert sorted(os.listdir(taken.path)) == ["catalog", "more", "names"]
    assert os.listdir(taken.path / "catalog") == [DATA_FILE]
    lose_catalog(root)
    shutil.copytree(taken.path / "catalog", root / "catalog")
    with open_store(root) as store:
        assert not store.behind
        assert store.get(file.file_id, user_id=USER) == b"one"
        push(store, b"two", "file")


def test_nothing_is_left_of_one_that_failed(root: Path, shelf: Path) -> None:
    with open_store(root) as store:
        for number in range(200):
            push(store, content(number, 300), f"file {number}")
    child = subprocess.run(
        [sys.executable, "-c", SHORT_OF_ROOM, str(root), str(shelf / "copy")],
        env=python_environment(),
        capture_output=True,
        check=True,
    )
    assert b"no space left for the snapshot" in child.stdout
    assert os.listdir(shelf) == []


def test_what_is_there_is_not_touched(root: Path, shelf: Path) -> None:
    open_store(root).close()
    (shelf / "copy").mkdir()
    with pytest.raises(InvalidArgument, match="exists already"):
        take_snapshot(root, shelf / "copy")
    (shelf / "link").symlink_to(shelf / "nowhere")
    with pytest.raises(InvalidArgument, match="exists already"):
        take_snapshot(root, shelf / "link")
    with pytest.raises(InvalidArgument, match="there is no catalog"):
        take_snapshot(shelf, shelf / "other")
    assert sorted(os.listdir(shelf)) == ["copy", "link"]


def test_a_copy_that_may_lack_entries_is_not_made_a_good_one(root: Path, shelf: Path, scratch: Path) -> None:
    with open_store(root) as store:
        push(store, b"one", "file")
        shutil.copytree(root, scratch / "copy")
    with pytest.raises(FormatError, match="copied while it was in use"):
        take_snapshot(scratch / "copy", shelf / "first")
    with open_store(scratch / "copy") as store:
        assert store.behind
    take_snapshot(scratch / "copy", shelf / "second")
    lose_catalog(scratch / "copy")
    shutil.copytree(shelf / "second" / "catalog", scratch / "copy" / "catalog")
    with open_store(scratch / "copy") as store:
        assert store.behind

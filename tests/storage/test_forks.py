"""Forks: a child cannot use what its parent has open, gets an error, and does not harm the parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isfunction
from pathlib import Path

import pytest

from storage import FileStorage, ManifestDiff, StoreLocked, UsedAfterFork
from tests.storage.helpers import CHUNK, USER, check_all, content, open_store, push, python_environment

ENDS_WITHIN_S = 60

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def in_child(work: Callable[[], object]) -> str:
    """Run ``work`` in a forked child; return its result, or the name of the error that it raises."""
    here, there = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(ENDS_WITHIN_S)
        try:
            outcome = repr(work())
        except BaseException as error:
            outcome = type(error).__name__
        os.write(there, outcome.encode())
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as said:
        outcome = said.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}"
    return outcome


Use = Callable[[FileStorage, str], object]

USES: dict[str, Use] = {
    "push": lambda store, _: push(store, b"x", "other"),
    "push of many chunks": lambda store, _: push(store, content(1, 5 * CHUNK), "other"),
    "upload": lambda store, _: store.upload(filename="other", user_id=USER),
    "get": lambda store, file_id: store.get(file_id, user_id=USER),
    "open_file": lambda store, file_id: store.open_file(file_id, user_id=USER),
    "find": lambda store, _: store.find("file", user_id=USER),
    "stat": lambda store, file_id: store.stat(file_id, user_id=USER),
    "history": lambda store, file_id: store.history(file_id, user_id=USER),
    "list_files": lambda store, _: store.list_files(user_id=USER),
    "chunk_ids": lambda store, file_id: store.chunk_ids(file_id, user_id=USER),
    "missing_chunks": lambda store, _: store.missing_chunks([bytes(32)], user_id=USER),
    "diff": lambda store, file_id: store.diff(file_id, b"y", user_id=USER),
    "revise": lambda store, file_id: store.revise(file_id, ManifestDiff("", 0, CHUNK, ()), user_id=USER),
    "synchronize": lambda store, file_id: store.synchronize(file_id, have_version_id="", user_id=USER),
    "delete": lambda store, file_id: store.delete(file_id, user_id=USER),
    "delete_files": lambda store, file_id: store.delete_files([file_id], user_id=USER),
    "scrub": lambda store, _: store.scrub(),
    "repair": lambda store, _: store.repair(),
    "collect": lambda store, _: store.collect(grace_s=0),
    "rebuild": lambda store, _: store.rebuild(),
    "stats": lambda store, _: store.stats(),
    "counts": lambda store, _: store.counts(),
    "healing": lambda store, _: store.healing(),
    "wait_for_healing": lambda store, _: store.wait_for_healing(),
    "rotate_key": lambda store, _: store.rotate_key(user_id=USER),
    "shred": lambda store, _: store.shred(),
    "is_busy": lambda store, _: store.is_busy(),
}


def test_a_child_is_told_to_open_a_store_of_its_own(store: FileStorage) -> None:
    version = push(store, content(1, 3 * CHUNK))

    def use_all() -> dict[str, str]:
        found: dict[str, str] = {}
        for name, use in USES.items():
            try:
                use(store, version.file_id)
            except UsedAfterFork as error:
                found[name] = "told" if "open it after the fork" in str(error) else str(error)
        return found

    assert in_child(use_all) == repr(dict.fromkeys(USES, "told"))
    check_all(store, {"file": (version, content(1, 3 * CHUNK))})


def test_every_method_for_users_is_tried_here() -> None:
    methods = {name for name, method in vars(FileStorage).items() if isfunction(method)}
    for_users = {name for name in methods if hasattr(getattr(FileStorage, name), "__wrapped__")}
    assert for_users - {"keep_interrupted"} <= {name.split()[0] for name in USES}


def test_what_was_begun_before_the_fork_does_not_go_on_in_the_child(store: FileStorage) -> None:
    data = content(2, 6 * CHUNK)
    version = push(store, data)
    reader = store.open_file(version.file_id, user_id=USER)
    pieces = reader.iter_chunks()
    first = bytes(next(pieces))
    upload = store.upload(filename="two", user_id=USER)
    upload.write(data[: 3 * CHUNK])

    for use in (lambda: next(pieces), lambda: reader.read(10), lambda: upload.write(b"x"), lambda: upload.commit()):
        assert in_child(use) == "UsedAfterFork"

    def end_both() -> None:
        reader.close()
        upload.abort()

    assert in_child(end_both) == "None"

    assert first + b"".join(pieces) == data
    upload.write(data[3 * CHUNK :])
    assert store.get(upload.commit().file_id, user_id=USER) == data
    reader.close()


def test_a_child_that_closes_the_store_leaves_it_open_and_locked(root: Path, store: FileStorage) -> None:
    def leave() -> None:
        with store:
            pass
        store.close()

    assert in_child(leave) == "None"
    with pytest.raises(StoreLocked):
        open_store(root)
    version = push(store, b"still here")
    assert store.get(version.file_id, user_id=USER) == b"still here"


def test_a_child_that_lives_on_does_not_keep_the_store_locked(root: Path) -> None:
    store = open_store(root)
    push(store, b"x")
    end, ended = os.pipe()
    child = os.fork()
    if not child:
        os.close(ended)
        os.read(end, 1)
        os._exit(0)
    os.close(end)
    try:
        store.close()
        with open_store(root) as again:
            assert again.counts().files == 1
    finally:
        os.close(ended)
        os.waitpid(child, 0)


SLOW_CHILD = """
import os, signal, sys, time
os.register_at_fork(after_in_child=lambda: time.sleep(60))  # before what the store registers
from storage import FileStorage

FileStorage.open(sys.argv[1]).close()
store = FileStorage.open(sys.argv[1])
child = os.fork()
try:
    store.close()
    FileStorage.open(sys.argv[1]).close()
finally:
    os.kill(child, signal.SIGKILL)
"""


def test_a_child_that_is_slow_to_begin_does_not_keep_the_store_locked(scratch: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW_CHILD, str(scratch / "store")],
        env=python_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_child_may_open_a_store_of_its_own(scratch: Path, store: FileStorage) -> None:
    push(store, b"x")

    def own() -> bytes:
        with open_store(scratch / "own") as mine:
            return mine.get(push(mine, b"mine").file_id, user_id=USER)

    assert in_child(own) == repr(b"mine")
    with open_store(scratch / "own") as mine:
        assert mine.counts().files == 1


@contextmanager
def pushing(store: FileStorage, threads: int) -> Iterator[dict[str, bytes]]:
    """Push in other threads while the block runs; then check that all acknowledged files are stored."""
    stored: dict[str, bytes] = {}
    failed: list[BaseException] = []
    stop = threading.Event()

    def work(number: int) -> None:
        count = 0
        try:
            while not stop.is_set():
                name, data = f"{number}-{count}", content(number, 100 + count * 7000 % (3 * CHUNK))
                stored[push(store, data, name).file_id] = data
                count += 1
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield stored
    finally:
        stop.set()
        for worker in workers:
            worker.join(ENDS_WITHIN_S)
    assert not failed
    assert not any(worker.is_alive() for worker in workers)


def test_forks_while_other_threads_push(root: Path) -> None:
    with open_store(root) as store:
        with pushing(store, 3) as stored:
            for _ in range(10):
                assert in_child(lambda: push(store, b"x", "from a child")) == "UsedAfterFork"
                assert in_child(store.close) == "None"
        assert store.find("from a child", user_id=USER) is None
        assert not store.scrub().damaged
    with open_store(root) as store:
        for file_id, data in stored.items():
            assert store.get(file_id, user_id=USER) == data


def _use_in_worker(store: FileStorage) -> None:
    try:
        push(store, b"x", "from a worker")
    except UsedAfterFork:
        sys.exit(7)


def test_multiprocessing_by_fork(store: FileStorage) -> None:
    process = multiprocessing.get_context("fork").Process(target=_use_in_worker, args=(store,))
    process.start()
    process.join(ENDS_WITHIN_S)
    assert process.exitcode == 7
    assert push(store, b"y").filename == "file"


ENDING = """
import os, sys
from storage import FileStorage, StoreLocked
root = sys.argv[1]
store = FileStorage.open(root)
version = store.push(bytes(300_000), filename="a", user_id="u")
reader = store.open_file(version.file_id, user_id="u")
if not os.fork():
    sys.exit(0)  # the interpreter takes down all that it inherited
pid, status = os.wait()
assert status == 0, status
assert len(reader.read()) == 300_000
try:
    FileStorage.open(root)
except StoreLocked:
    pass
else:
    raise AssertionError("the child let go of the lock")
store.push(b"more", filename="b", user_id="u")
reader.close()
store.close()
with FileStorage.open(root) as again:
    assert again.counts().files == 2
    assert not again.scrub().damaged
print("whole")
"""


def test_a_child_that_exits_as_programs_do(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(root)],
        env=python_environment(), capture_output=True, text=True, timeout=ENDS_WITHIN_S, check=False,
    )  # fmt: skip
    assert done.stdout == "whole\n", done.stderr

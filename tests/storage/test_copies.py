"""Copies of LMDB environments: made after a clean close, after a crash, and torn ones made during use."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from storage import CatalogBehind, FileStorage, FormatError
from storage.system.lmdb_env import Environment
from storage.system.lmdb_origin import DATA_FILE, ORIGIN_KEY
from storage.system.lmdb_pages import DataFile, TornPages
from tests.storage.helpers import USER, content, open_store, push, python_environment

HEADERS_BYTES = 2 * 4096


@pytest.fixture
def root(scratch: Path) -> Path:
    return scratch / "store"


def torn_copy(environment: Path, target: Path, changes: Iterator[object]) -> None:
    """Make a copy that read the headers before some changes and the other pages after them."""
    with (environment / DATA_FILE).open("rb") as file:
        headers = file.read(HEADERS_BYTES)
        for _ in changes:
            pass
        file.seek(HEADERS_BYTES)
        target.mkdir(parents=True)
        (target / DATA_FILE).write_bytes(headers + file.read())


def read(store: FileStorage, file_id: str) -> bytes:
    return store.get(file_id, user_id=USER)


def pushes(store: FileStorage, count: int) -> Iterator[object]:
    for number in range(count):
        yield push(store, content(number, 300), f"later {number}")


def put_in_place(copy: Path, place: Path) -> None:
    shutil.rmtree(place)
    copy.rename(place)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid reading a whole environment."""

    def check(file: DataFile) -> None:
        raise AssertionError("all of a database was read")

    monkeypatch.setattr(DataFile, "check", check)


# -- torn copies ---------------------------------------------------------------------------------


def test_a_torn_catalog_is_refused_and_not_written_to(root: Path, scratch: Path) -> None:
    kept = {}
    with open_store(root) as store:
        for number in range(60):
            kept[push(store, content(number, 300), f"file {number}").file_id] = content(number, 300)
        torn_copy(root / "catalog", scratch / "copy", pushes(store, 40))
    put_in_place(scratch / "copy", root / "catalog")
    before = (root / "catalog" / DATA_FILE).read_bytes()
    for _ in range(2):
        with pytest.raises(FormatError, match=r"copied while it was in use.*Nothing was written"):
            open_store(root)
    assert (root / "catalog" / DATA_FILE).read_bytes() == before

    (root / "catalog").rename(scratch / "away")
    with open_store(root) as store:
        store.rebuild()
        assert {file_id: read(store, file_id) for file_id in kept} == kept


def test_a_torn_index_is_made_again(root: Path, scratch: Path) -> None:
    index = root / "volumes" / "0" / "index"
    with open_store(root) as store:
        files = [push(store, content(number, 300), f"file {number}") for number in range(60)]
    with open_store(root) as store:
        files += [push(store, content(number, 300), f"more {number}") for number in range(60)]
        headers = (index / DATA_FILE).read_bytes()[:HEADERS_BYTES]
    for again in range(4):  # closing a store writes to its index
        with open_store(root) as store:
            push(store, content(again, 300), f"again {again}")
    pages = (index / DATA_FILE).read_bytes()[HEADERS_BYTES:]
    shutil.rmtree(index)
    index.mkdir()
    (index / DATA_FILE).write_bytes(headers + pages)
    with pytest.raises(FormatError):
        Environment(index, ("shards",))
    with open_store(root) as store:
        assert [read(store, file.file_id) for file in files] == [content(number, 300) for number in [*range(60)] * 2]
        assert store.scrub().clean


def test_a_torn_copy_of_an_older_version_is_refused(root: Path, scratch: Path) -> None:
    """An older version has no note of its origin."""
    with lmdb.open(str(root), max_dbs=2) as environment:
        table = environment.open_db(b"table")

        def change() -> Iterator[None]:
            for _ in range(30):
                with environment.begin(write=True) as txn:
                    txn.put(random.randbytes(16), bytes(300), db=table)
                yield

        for _ in change():
            pass
        torn_copy(root, scratch / "copy", change())
    with pytest.raises(FormatError, match="pages are inconsistent"):
        Environment(scratch / "copy", ("table",))
    Environment(root, ("table",)).close()


# -- whole copies --------------------------------------------------------------------------------


def test_a_store_that_was_closed_may_be_copied(root: Path, scratch: Path, request: pytest.FixtureRequest) -> None:
    with open_store(root) as store:
        file = push(store, b"one", "file")
    shutil.copytree(root, scratch / "copy")
    with open_store(scratch / "copy") as store:
        assert not store.behind
        push(store, b"two", "file")
        assert store.scrub().clean
    request.getfixturevalue("unread")  # a copy is read as a whole once
    with open_store(scratch / "copy") as store:
        assert read(store, file.file_id) == b"two"


def test_a_catalog_copied_in_use_is_only_read_until_a_rebuild(root: Path, scratch: Path) -> None:
    """Its pages seem consistent, and as no commit came after it, the volumes cannot reveal that it is a copy."""
    with open_store(root) as store:
        file = push(store, b"one", "file")
        shutil.copytree(root, scratch / "copy")
    for _ in range(2):
        with open_store(scratch / "copy") as store:
            assert store.behind
            assert read(store, file.file_id) == b"one"
            with pytest.raises(CatalogBehind, match=r"copied while it was in use.*run rebuild"):
                push(store, b"two", "file")
            with pytest.raises(CatalogBehind):
                store.collect()
    with open_store(scratch / "copy") as store:
        store.rebuild()
        push(store, b"two", "file")
    with open_store(scratch / "copy") as store:
        assert not store.behind
        assert read(store, file.file_id) == b"two"


def test_a_crash_needs_neither_a_look_at_everything_nor_a_rebuild(root: Path, request: pytest.FixtureRequest) -> None:
    program = (
        "import os, signal, sys; from tests.storage.helpers import open_store, push; from pathlib import Path\n"
        "for ended in (True, False):\n"
        "    store = open_store(Path(sys.argv[1])); push(store, b'one', str(ended)); ended and store.close()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(root)], env=python_environment(), check=False)
    assert ended.returncode == -signal.SIGKILL
    request.getfixturevalue("unread")
    with open_store(root.rename(root.with_name("moved"))) as store:
        assert not store.behind
        push(store, b"two", "file")


def test_a_kernel_that_does_not_tell_when_files_were_made(
    root: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("storage.system.lmdb_origin._born_ns", lambda descriptor: 0)
        with open_store(root) as store:
            push(store, b"one", "file")
    request.getfixturevalue("unread")
    with open_store(root) as store:
        push(store, b"two", "file")
    monkeypatch.setattr("storage.system.lmdb_origin._born_ns", lambda descriptor: 0)
    with open_store(root) as store:
        assert not store.behind


def test_a_store_of_an_older_version_is_read_once(root: Path, request: pytest.FixtureRequest) -> None:
    with open_store(root) as store:
        file = push(store, b"one", "file")
    for data in root.rglob(DATA_FILE):
        with lmdb.open(str(data.parent), map_size=1 << 24) as environment, environment.begin(write=True) as txn:
            txn.delete(ORIGIN_KEY)
    with open_store(root) as store:
        assert not store.behind
        assert read(store, file.file_id) == b"one"
    request.getfixturevalue("unread")
    with open_store(root) as store:
        push(store, b"two", "file")


def test_a_catalog_copied_in_use_to_a_read_only_disk(
    root: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(root) as store:
        file = push(store, b"one", "file")
        shutil.copytree(root, scratch / "copy")
    lmdb_open = lmdb.open

    def read_only(path: str, **options: Any) -> lmdb.Environment:
        if not options.get("readonly"):
            raise lmdb.Error(f"{path}: {os.strerror(errno.EROFS)}")
        return lmdb_open(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", read_only)
        with open_store(scratch / "copy") as store:
            assert store.behind
            assert read(store, file.file_id) == b"one"
    with open_store(scratch / "copy") as store:
        assert store.behind


def test_an_environment_of_what_is_derived_does_not_note_that_it_is_in_use(scratch: Path) -> None:
    environment = Environment(scratch / "one", ("table",))
    environment.write(lambda txn: txn.put(b"key", b"value", db=environment.databases["table"]))
    shutil.copytree(scratch / "one", scratch / "copy")
    environment.close()
    copy = Environment(scratch / "copy", ("table",))
    assert copy.get("table", b"key") == b"value"
    assert not copy.doubtful
    copy.close()


# -- reading the pages ---------------------------------------------------------------------------


def _lived(path: Path, rng: random.Random) -> None:
    """Make an environment with short and long values, many of which were replaced or deleted."""
    with lmdb.open(str(path), max_dbs=3, map_size=1 << 26, sync=False) as environment:
        tables = [environment.open_db(name) for name in (b"a", b"b")]
        keys: list[bytes] = []
        for _ in range(60):
            with environment.begin(write=True) as txn:
                txn.put(b"note", rng.randbytes(20))
                for _ in range(40):
                    keys.append(rng.randbytes(rng.choice((4, 16, 300))))
                    txn.put(keys[-1], rng.randbytes(rng.choice((0, 60, 1900, 9000))), db=rng.choice(tables))
                for size in (70_000, 9000):  # a value that was longer in the same transaction keeps its pages
                    txn.put(b"shrunk", bytes(size), db=tables[0])
                for key in rng.sample(keys, 15):
                    txn.delete(key, db=rng.choice(tables))


def _check(path: Path) -> None:
    with DataFile.opened(path / DATA_FILE) as file:
        assert file is not None
        file.get(b"note")
        file.check()


def test_pages_that_lmdb_wrote_belong_together(scratch: Path) -> None:
    _lived(scratch / "env", random.Random(1))
    _check(scratch / "env")
    (scratch / "compact").mkdir()
    with lmdb.open(str(scratch / "env"), max_dbs=3, map_size=1 << 26) as environment:
        environment.copy(str(scratch / "compact"), compact=True)
        with environment.begin() as txn:
            note = txn.get(b"note")
    for path in (scratch / "env", scratch / "compact"):
        _check(path)
        with DataFile.opened(path / DATA_FILE) as file:
            assert file is not None
            assert file.get(b"note") == note
            assert file.get(b"other") is None


def test_no_damage_of_pages_leads_anywhere_else(scratch: Path) -> None:
    """Whatever the bytes are, reads stay within the file or raise the expected error."""
    rng = random.Random(2)
    _lived(scratch / "env", rng)
    whole = (scratch / "env" / DATA_FILE).read_bytes()
    pages = len(whole) // 4096
    found = 0
    for _ in range(150):
        raw = bytearray(whole)
        page = rng.randrange(pages)
        match rng.randrange(4):
            case 0:  # a header, or the beginning of a page
                at = page * 4096 + rng.randrange(40)
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                at = rng.choice((16, 4112)) + rng.randrange(140)
                raw[at : at + 8] = rng.choice((rng.randbytes(8), b"\xff" * 8))
            case 2:
                other = rng.randrange(pages)
                raw[page * 4096 : page * 4096 + 4096] = whole[other * 4096 : other * 4096 + 4096]
            case _:
                del raw[page * 4096 + rng.randrange(4096) :]
        (scratch / "env" / DATA_FILE).write_bytes(raw)
        try:
            with DataFile.opened(scratch / "env" / DATA_FILE) as file:
                if file is not None:
                    file.get(b"note")
                    file.check()
        except TornPages:
            found += 1
    assert found > 50


def test_what_is_no_database_is_left_to_lmdb(scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    (scratch / "env").mkdir()
    (scratch / "env" / DATA_FILE).write_bytes(b"something else" * 1000)
    with caplog.at_level(logging.INFO), pytest.raises(FormatError, match="cannot be used"):
        Environment(scratch / "env", ("table",))

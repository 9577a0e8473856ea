"""A tree whose files are stored under names of their own comes back as it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import FileNotFound, FileStorage, PushOutcome
from storage.errors import InvalidArgument
from taskworker import AsyncClient
from taskworker.errors import DeadlineExceeded
from taskworker.folders import (
    ChangedWhileRead,
    Exclusions,
    FolderDamaged,
    FolderIncomplete,
    PushReport,
    Unstorable,
    get_tree,
    push_tree,
)
from taskworker.folders.embedded import StoreFiles
from taskworker.folders.entries import Entry, Kind, Listing, decode_listing, encode_listing
from taskworker.folders.ports import Content, Files
from taskworker.folders.rules import Rules
from tests.folders.trees import described, make, trees
from tests.functions.processes import FunctionPool

Problems = dict[bytes, Exception]


def pushed(files: Files, source: Path, problems: Problems | None = None, **options: Any) -> PushReport:
    found: Problems = {} if problems is None else problems
    report = push_tree(files, source, "folder", problem=found.__setitem__, **options)
    assert problems is not None or not found
    return report


def restored(files: Files, target: Path) -> Path:
    problems: Problems = {}
    get_tree(files, "folder", target, problem=problems.__setitem__)
    assert not problems
    return target


def names(files: Files) -> list[str]:
    return [head.filename for head in files.heads("")]


class Rewriting(StoreFiles):
    """Files of a user, before and after the reading of which something is done."""

    before: Callable[[str], None]

    def push_many(self, files: Iterable[tuple[str, Content]]) -> Iterator[PushOutcome]:
        def watched() -> Iterator[tuple[str, Content]]:
            for name, content in files:
                self.before(name)
                yield name, content

        return super().push_many(watched())


def test_a_file_written_twice_in_one_tick_is_sent_twice(store: FileStorage, user: str, source: Path) -> None:
    files = Rewriting(store, user)
    make(source, {b"a": ("file", b"", 0o644, 5), b"d": {b"b": ("file", b"", 0o644, 5)}})
    a, b = source / "a", source / "d/b"

    def write(name: str) -> None:  # first before it is found, then just after it was read
        texts = {"folder/a": b"%08d" % number, "folder/d/b": b"%08d" % (number + 1)}
        if name in texts:
            b.write_bytes(texts[name])

    files.before = write
    for number in range(0, 20, 2):
        a.write_bytes(b"%08d" % number)
        pushed(files, source)
        files.before = lambda name: None
        pushed(files, source)
        head = files.find("folder/d/b")
        assert head is not None
        assert files.read(head, 0, 8) == b.read_bytes() == b"%08d" % (number + 1)
        files.before = write


def test_a_tree_comes_back_as_it_was(files: Files, source: Path, tmp_path: Path) -> None:
    make(
        source,
        {
            b"a": ("file", b"content", 0o600, 1_000_000_000_123_456_789),
            b"inner": {
                b"large": ("file", os.urandom(3_000_000), 0o755, 5),
                b"up": ("link", b"../a", 7),
                b"out": ("link", b"/etc/passwd", 8),
            },
            b"empty": {},
            "Grüße".encode(): ("file", b"", 0o644, -1),
        },
    )
    os.link(source / "a", source / "inner" / "same")
    report = pushed(files, source)
    assert (report.files, report.stored, report.others, report.failed) == (4, 4, 5, 0)
    assert names(files) == ["folder/", "folder/Grüße", "folder/a", "folder/inner/large", "folder/inner/same"]
    assert described(restored(files, tmp_path / "target")) == described(source)


def test_unchanged_files_are_not_sent_again(files: Files, source: Path, tmp_path: Path) -> None:
    make(source, {b"a": ("file", b"1", 0o644, 5), b"b": ("file", b"2", 0o644, 5)})
    pushed(files, source)
    assert pushed(files, source).stored == 0
    (source / "b").write_bytes(b"3")
    assert pushed(files, source).stored == 1
    files.push("folder/a", b"changed in the store")
    assert pushed(files, source).stored == 1, "it is another content there"
    assert described(restored(files, tmp_path / "target")) == described(source)


def test_what_others_store_in_a_folder_is_part_of_it(store_files: Files, source: Path, tmp_path: Path) -> None:
    make(source, {b"a": ("file", b"1", 0o640, 5)})
    pushed(store_files, source)
    store_files.push("folder/inner/new", b"by another program")
    store_files.push("folder/a", b"newer")
    target = restored(store_files, tmp_path / "target")
    assert (target / "inner/new").read_bytes() == b"by another program"
    assert (target / "a").read_bytes() == b"newer"
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o640


def test_files_that_are_gone_are_deleted_where_asked(store_files: Files, source: Path) -> None:
    make(source, {b"a": ("file", b"1", 0o644, 5), b"d": {b"b": ("file", b"2", 0o644, 5)}})
    pushed(store_files, source)
    (source / "a").unlink()
    pushed(store_files, source)
    assert "folder/a" in names(store_files)
    assert pushed(store_files, source, delete=True).deleted == 1
    assert names(store_files) == ["folder/", "folder/d/b"]


def test_names_that_the_store_cannot_have_are_told(store_files: Files, source: Path) -> None:
    make(source, {b"good": ("file", b"1", 0o644, 5), b"bad\xff": ("file", b"2", 0o644, 5)})
    problems: Problems = {}
    report = pushed(store_files, source, problems)
    assert (report.files, report.failed) == (1, 1)
    assert isinstance(problems[b"bad\xff"], Unstorable)


class Writing(StoreFiles):
    """Writes to a file of the tree when a push begins to read large content."""

    path: Path

    def push_many(self, files: Any) -> Iterator[Any]:
        def changed() -> Iterator[Any]:
            for name, content in files:
                if not isinstance(content, bytes):
                    self.path.write_bytes(b"shorter")
                yield name, content

        return super().push_many(changed())


def test_a_file_that_changes_while_it_is_read_is_told(store: FileStorage, user: str, source: Path) -> None:
    files = Writing(store, user)
    files.path = source / "log"
    make(source, {b"log": ("file", bytes(2_000_000), 0o644, 5), b"z": ("file", b"2", 0o644, 5)})
    problems: Problems = {}
    report = pushed(files, source, problems)
    assert isinstance(problems[b"log"], ChangedWhileRead)
    assert (report.files, report.failed) == (2, 1), "the rest is stored"
    assert pushed(files, source).stored == 1, "it is read again the next time"


def test_sparse_files_stay_sparse(store_files: Files, source: Path, tmp_path: Path) -> None:
    with (source / "disk").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(10 << 20)
        file.write(b"data")
    pushed(store_files, source)
    target = restored(store_files, tmp_path / "target") / "disk"
    assert target.stat().st_size == 64 << 20
    assert target.stat().st_blocks * 512 < 1 << 20
    with target.open("rb") as file:
        file.seek(10 << 20)
        assert file.read(5) == b"data\0"


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.o"], ["a.c", "build/", "build/keep.c"]),
        (["*.o", "!build/x.o"], ["a.c", "build/", "build/keep.c", "build/x.o"]),
        (["build/"], ["a.c", "a.o"]),
        (["/a.*"], ["build/", "build/keep.c", "build/x.o"]),
    ],
)
def test_patterns_are_those_of_gitignore(
    store_files: Files, source: Path, tmp_path: Path, patterns: list[str], left: list[str]
) -> None:
    file = ("file", b"", 0o644, 5)
    make(source, {b"a.c": file, b"a.o": file, b"build": {b"x.o": file, b"keep.c": file}})
    pushed(store_files, source, exclusions=Exclusions(tuple(patterns)))
    target = restored(store_files, tmp_path / "target")
    assert sorted(f"{p.relative_to(target)}{'/' if p.is_dir() else ''}" for p in target.rglob("*")) == left


def test_an_inner_twignore_goes_before_an_outer_one(store_files: Files, source: Path) -> None:
    file = ("file", b"", 0o644, 5)
    make(source, {b"x.log": file, b"in": {b"x.log": file}})
    (source / ".twignore").write_text("*.log\n")
    (source / "in/.twignore").write_text("!x.log\n")
    pushed(store_files, source)
    assert names(store_files) == ["folder/", "folder/.twignore", "folder/in/.twignore", "folder/in/x.log"]


def test_caches_are_left_out_but_for_their_tags(store_files: Files, source: Path) -> None:
    file = ("file", b"", 0o644, 5)
    tag = ("file", b"Signature: 8a477f597d28d172789f06886806bc55\n", 0o644, 5)
    make(source, {b"cache": {b"CACHEDIR.TAG": tag, b"x": file}, b"other": {b"CACHEDIR.TAG": file, b"y": file}})
    pushed(store_files, source, exclusions=Exclusions(caches=True))
    assert names(store_files) == ["folder/", "folder/cache/CACHEDIR.TAG", "folder/other/CACHEDIR.TAG", "folder/other/y"]


def test_a_folder_that_does_not_exist(store_files: Files, tmp_path: Path) -> None:
    with pytest.raises(FileNotFound):
        get_tree(store_files, "none", tmp_path / "target", problem=lambda path, error: None)
    assert not (tmp_path / "target").exists()


def test_a_file_in_the_listings_place_is_no_listing(store_files: Files, source: Path) -> None:
    store_files.push("folder/", b"something else")
    with pytest.raises(FolderDamaged, match="delete that file"):
        pushed(store_files, source)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees(text_names=True))
def test_any_tree_comes_back(store: FileStorage, tree: dict[bytes, Any]) -> None:
    files = StoreFiles(store, uuid.uuid4().hex)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        make(source, tree)
        pushed(files, source)
        assert described(restored(files, Path(directory) / "target")) == described(source)


# -- hostile listings ---------------------------------------------------------------------------------


def entry(name: bytes, kind: Kind = Kind.FILE, **more: Any) -> Entry:
    return Entry(name, kind, more.pop("mode", 0o644), 0, 0, 0, 0, 1, **more)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_listing_or_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(FolderDamaged):
        decode_listing(data)


@pytest.mark.parametrize("path", [b"..", b"../x", b"a/../../x", b"/etc/x", b"a//b", b"a/", b".", b"a\0b", b"x" * 256])
def test_paths_that_lead_out_are_refused(path: bytes) -> None:
    with pytest.raises(FolderDamaged):
        decode_listing(encode_listing([entry(path)]))


def test_an_order_that_is_not_that_of_names_is_refused() -> None:
    with pytest.raises(FolderDamaged, match="order"):
        decode_listing(msgspec.msgpack.encode(Listing(1, (entry(b"b"), entry(b"a")))))


def test_nothing_is_written_through_a_link(store_files: Files, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    listing = [entry(b"", Kind.DIRECTORY), entry(b"door", Kind.SYMLINK, target=os.fsencode(outside))]
    store_files.push("folder/", encode_listing(listing))
    store_files.push("folder/door/x", b"through")
    target = tmp_path / "target"
    target.mkdir()
    (target / "door").symlink_to(outside)
    problems: Problems = {}
    get_tree(store_files, "folder", target, problem=problems.__setitem__)
    assert isinstance(problems[b"door/x"], Unstorable)
    assert not list(outside.iterdir())


def test_set_user_id_bits_are_not_restored(store_files: Files, source: Path, tmp_path: Path) -> None:
    (source / "program").write_bytes(b"")
    (source / "program").chmod(0o6755)
    pushed(store_files, source)
    target = restored(store_files, tmp_path / "target")
    assert stat.S_IMODE((target / "program").stat().st_mode) == 0o755


def test_the_deepest_directory_decides() -> None:
    rules = Rules.of(["*.o"]).deeper("a/", ["!x.o"])
    assert rules.excludes("x.o", is_directory=False)
    assert not rules.excludes("a/x.o", is_directory=False)
    assert rules.excludes("a/y.o", is_directory=False)


# -- the client --------------------------------------------------------------------------------------


def test_the_client_pushes_and_gets_trees(pool: FunctionPool, user: str, source: Path, tmp_path: Path) -> None:
    client = pool.client
    make(source, {b"a": ("file", b"1", 0o600, 5), b"b.tmp": ("file", b"2", 0o644, 5), b"inner": {}})
    report = client.push_tree(source, user_id=user, exclude=["*.tmp"])
    assert (report.prefix, report.files, report.stored) == ("source/", 1, 1)
    assert client.push_tree(str(source), "other", user_id=user, timeout_s=60).files == 2
    assert client.get_tree("other", tmp_path / "target", user_id=user).files == 2
    assert described(tmp_path / "target") == described(source)
    with pytest.raises(InvalidArgument, match="must be a list"):
        client.push_tree(source, user_id=user, exclude="*.tmp")
    with pytest.raises(DeadlineExceeded):
        client.push_tree(source, user_id=user, timeout_s=1e-9)
    with pytest.raises(FileNotFound):
        client.get_tree("none", tmp_path / "none", user_id=user)


def test_what_could_not_be_stored_is_an_error_if_nobody_is_told(
    pool: FunctionPool, user: str, source: Path, tmp_path: Path
) -> None:
    make(source, {b"\xff": ("file", b"1", 0o600, 5), b"good": ("file", b"2", 0o644, 5)})
    with pytest.raises(FolderIncomplete, match="not UTF-8") as caught:
        pool.client.push_tree(source, user_id=user)
    ((path, error),) = caught.value.problems
    assert (path, type(error)) == (b"\xff", Unstorable)
    pool.client.get_tree("source", tmp_path / "target", user_id=user)
    assert (tmp_path / "target" / "good").read_bytes() == b"2"
    told: Problems = {}
    assert pool.client.push_tree(source, user_id=user, problem=told.__setitem__).failed == 1
    assert list(told) == [b"\xff"]


def test_coroutines_push_and_get_trees(pool: FunctionPool, user: str, source: Path, tmp_path: Path) -> None:
    make(source, {b"a": {b"b": ("file", b"1", 0o600, 5)}})

    async def there_and_back() -> None:
        async with AsyncClient(pool.client.address) as client:
            assert (await client.push_tree(source, "folder", user_id=user)).files == 1
            await client.get_tree("folder", tmp_path / "target", user_id=user)

    asyncio.run(there_and_back())
    assert described(tmp_path / "target") == described(source)

"""Snapshots come back as the folder was, share what is equal, and leave nothing behind when they are forgotten."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import FileNotFound, FileStorage
from storage.errors import ConflictError, InvalidArgument
from taskworker.folders import ChangedWhileRead, FolderDamaged, Unstorable
from taskworker.folders.embedded import StoreFiles
from taskworker.folders.entries import Entry, Kind
from taskworker.folders.ports import Files
from taskworker.folders.rules import Exclusions
from taskworker.folders.snapshots import (
    Change,
    Keep,
    Repository,
    Snapshot,
    TakeReport,
    compare,
    folder_names,
    forget,
    forgetting,
    restore,
    take_snapshot,
)
from taskworker.folders.snapshots.blobs import (
    IndexDocument,
    Place,
    blob_id,
    decode_index,
    encode_index,
)
from taskworker.folders.snapshots.directories import (
    Directory,
    decode_directory,
    read_directory,
    store_directory,
)
from taskworker.folders.snapshots.forgetting import UNFINISHED_MS
from taskworker.folders.snapshots.records import decode_record, encode_record
from tests.folders.trees import described, make, trees

Problems = dict[bytes, Exception]
FILE = ("file", b"", 0o644, 5)


def taken(files: Files, source: Path, problems: Problems | None = None, **options: Any) -> TakeReport:
    found: Problems = {} if problems is None else problems
    report = take_snapshot(files, source, "folder", problem=found.__setitem__, **options)
    assert problems is not None or not found
    return report


def restored(files: Files, target: Path, reference: str = "latest", **options: Any) -> Path:
    repository = Repository(files, "folder")
    problems: Problems = {}
    restore(repository, repository.snapshot(reference), target, problem=problems.__setitem__, **options)
    assert not problems
    return target


def kept(files: Files, keep: Callable[[tuple[Snapshot, ...]], Any], **options: Any) -> Any:
    repository = Repository(files, "folder")
    return forget(repository, keep(repository.record.snapshots), **options)


def test_a_snapshot_comes_back_as_the_folder_was(files: Files, source: Path, tmp_path: Path) -> None:
    make(
        source,
        {
            b"a": ("file", b"content", 0o600, 1_000_000_000_123_456_789),
            b"inner": {
                b"large": ("file", os.urandom(5_000_000), 0o755, 5),
                b"same": ("file", b"content", 0o644, 6),
                b"out": ("link", b"/etc/passwd", 8),
                b"pipe": ("fifo", 0o600, 9),
            },
            b"empty": {},
            b"not\xffutf8": ("file", b"1", 0o644, -1),
        },
    )
    os.link(source / "a", source / "inner" / "linked")
    before = described(source)
    first = taken(files, source)
    assert (first.files, first.read, first.others, first.failed) == (5, 4, 4, 0)
    (source / "a").write_bytes(b"changed")
    (source / "inner/same").unlink()
    second = taken(files, source)
    assert second.read == 1, "one file, though it has two names"
    assert second.added < 2000
    assert first.snapshot is not None
    assert described(restored(files, tmp_path / "first", first.snapshot.id)) == before
    assert described(restored(files, tmp_path / "second")) == described(source)
    assert folder_names(files) == ["folder"]


def test_a_snapshot_of_nothing_new_stores_nothing_new(store_files: Files, source: Path) -> None:
    make(source, {b"d": {b"a": ("file", b"1", 0o644, 5)}, b"b": ("file", b"2", 0o644, 5)})
    taken(store_files, source)
    before = len(list(store_files.heads("")))
    again = taken(store_files, source)
    assert (again.read, again.added) == (0, 0)
    assert len(list(store_files.heads(""))) - before <= 1, "but for an index"


def test_what_is_unchanged_is_found_by_all_that_shows_it(store_files: Files, source: Path, tmp_path: Path) -> None:
    files = {b"%d" % number: ("file", b"%d" % number, 0o644, 5) for number in range(8)}
    make(source, {b"d": files | {b"link": ("link", b"0", 5)}})
    taken(store_files, source)
    (source / "d/0").chmod(0o600)
    (source / "d/1").write_bytes(b"x")
    os.utime(source / "d/1", ns=(5, 5))  # of the same size and time, as some programs do it
    os.link(source / "d/2", source / "d/2-too")
    (source / "d/3").rename(source / "d/3-moved")
    (source / "d/link").unlink()
    (source / "d/link").symlink_to("4")
    assert taken(store_files, source).read == 4, "0, 1, 2 and 3-moved"
    assert described(restored(store_files, tmp_path / "target")) == described(source)
    assert taken(store_files, source, exclusions=Exclusions(patterns=("4",))).read == 0
    assert described(restored(store_files, tmp_path / "other")).keys() == described(source).keys() - {b"/d/4"}


def test_many_small_files_share_few_stored_files(store_files: Files, source: Path, tmp_path: Path) -> None:
    make(source, {b"%d" % number: ("file", b"content %d" % number, 0o644, 5) for number in range(2500)})
    taken(store_files, source)
    assert len(list(store_files.heads(""))) == 4, "contents, directories, their index, and the record"
    assert described(restored(store_files, tmp_path / "target")) == described(source)


def test_a_moved_file_is_not_stored_again(store_files: Files, source: Path) -> None:
    make(source, {b"a": ("file", os.urandom(100_000), 0o644, 5)})
    taken(store_files, source)
    (source / "a").rename(source / "b")
    assert taken(store_files, source).added < 1000


def test_part_of_a_snapshot(store_files: Files, source: Path, tmp_path: Path) -> None:
    make(source, {b"d": {b"e": {b"a": ("file", b"1", 0o644, 5)}}, b"b": FILE})
    taken(store_files, source)
    assert described(restored(store_files, tmp_path / "part", path=b"d")) == described(source / "d")
    assert (restored(store_files, tmp_path / "file", path=b"d/e/a") / "a").read_bytes() == b"1"
    with pytest.raises(FileNotFound):
        restored(store_files, tmp_path / "none", path=b"d/x")
    with pytest.raises(FolderDamaged):
        restored(store_files, tmp_path / "none", path=b"../x")
    assert not (tmp_path / "none").exists()


def test_what_differs(store_files: Files, source: Path) -> None:
    make(
        source,
        {
            b"changed": ("file", b"1", 0o644, 5),
            b"mode": ("file", b"1", 0o644, 5),
            b"gone": {b"x": FILE},
            b"kind": FILE,
            b"same": {b"y": FILE},
        },
    )
    taken(store_files, source)
    make(source, {b"changed": ("file", b"2", 0o644, 5), b"new": {b"z": FILE}})
    (source / "mode").chmod(0o600)
    (source / "gone/x").unlink()
    (source / "gone").rmdir()
    (source / "kind").unlink()
    (source / "kind").mkdir()
    taken(store_files, source)
    repository = Repository(store_files, "folder")
    found = [(change, path) for change, path, _ in compare(repository, *repository.record.snapshots)]
    assert found == [
        (Change.CONTENT, b"changed"),
        (Change.REMOVED, b"gone"),
        (Change.REMOVED, b"gone/x"),
        (Change.KIND, b"kind"),
        (Change.ATTRIBUTES, b"mode"),
        (Change.ADDED, b"new"),
        (Change.ADDED, b"new/z"),
    ]


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


def test_a_file_that_changes_while_it_is_read_is_told(
    store: FileStorage, user: str, source: Path, tmp_path: Path
) -> None:
    files = Writing(store, user)
    files.path = source / "log"
    make(source, {b"log": ("file", bytes(6_000_000), 0o644, 5), b"z": ("file", b"2", 0o644, 5)})
    problems: Problems = {}
    report = taken(files, source, problems)
    assert isinstance(problems[b"log"], ChangedWhileRead)
    assert (report.files, report.failed) == (2, 1)
    assert (restored(files, tmp_path / "target") / "log").read_bytes() == b"shorter"
    assert taken(files, source).read == 1, "it is read again"


# -- forgetting ---------------------------------------------------------------------------------------


def test_what_only_forgotten_snapshots_needed_is_deleted(files: Files, source: Path, tmp_path: Path) -> None:
    make(source, {b"large": ("file", os.urandom(5_000_000), 0o644, 5), b"kept": ("file", b"1", 0o644, 5)})
    taken(files, source)
    (source / "large").unlink()
    taken(files, source)
    report = kept(files, Keep(last=1).kept)
    assert (len(report.kept), len(report.forgotten)) == (1, 1)
    assert report.deleted_size > 5_000_000
    assert sum(head.size for head in files.heads("")) < 10_000
    assert described(restored(files, tmp_path / "target")) == described(source)
    assert kept(files, Keep(last=1).kept).deleted == 0
    kept(files, lambda snapshots: [])
    assert len(list(files.heads(""))) == 1, "only the record is left"
    assert taken(files, source).read == 1


def test_what_is_left_of_a_pack_is_written_anew(store_files: Files, source: Path, tmp_path: Path) -> None:
    make(source, {b"%d" % number: ("file", os.urandom(10_000), 0o644, 5) for number in range(50)})
    taken(store_files, source)
    for number in range(10, 50):
        (source / str(number)).unlink()
    taken(store_files, source)
    report = kept(store_files, Keep(last=1).kept)
    assert 100_000 <= report.rewritten_size < 110_000
    assert sum(head.size for head in store_files.heads("")) < 120_000
    assert described(restored(store_files, tmp_path / "target")) == described(source)
    assert taken(store_files, source).read == 0


@pytest.mark.parametrize("merged_below", [1, 4096])
def test_what_is_not_needed_in_a_pack_adds_up(
    store_files: Files, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged_below: int
) -> None:
    """A pack of which less than half is needed is written anew, also if that was so only after several times."""
    monkeypatch.setattr(forgetting, "_MERGED_BELOW", merged_below)
    make(source, {b"%d" % number: ("file", os.urandom(10_000), 0o644, 5) for number in range(50)})
    taken(store_files, source)
    for start, stop, rewritten in ((0, 15, 0), (15, 30, 200_000)):
        for number in range(start, stop):
            (source / str(number)).unlink()
        assert taken(store_files, source).read == 0
        report = kept(store_files, Keep(last=1).kept)
        assert rewritten <= report.rewritten_size < rewritten + 10_000
    assert sum(head.size for head in store_files.heads("")) < 220_000
    assert described(restored(store_files, tmp_path / "target")) == described(source)


def test_what_an_earlier_snapshot_needed_is_stored_still(
    store_files: Files, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left in packs is found by later snapshots, and comes back from there."""
    monkeypatch.setattr(forgetting, "_MERGED_BELOW", 1)
    content = {b"%d" % number: ("file", os.urandom(10_000), 0o644, 5) for number in range(20)}
    make(source, content)
    taken(store_files, source)
    (source / "3").unlink()
    taken(store_files, source)
    kept(store_files, Keep(last=1).kept)
    make(source, {b"4-again": content[b"3"]})
    assert taken(store_files, source).added < 10_000
    kept(store_files, Keep(last=1).kept)
    assert described(restored(store_files, tmp_path / "target")) == described(source)


def test_a_dry_run_changes_nothing(store_files: Files, source: Path) -> None:
    taken(store_files, source)
    taken(store_files, source)
    before = [head.version_id for head in store_files.heads("")]
    assert len(kept(store_files, Keep(last=1).kept, dry_run=True).forgotten) == 1
    assert [head.version_id for head in store_files.heads("")] == before


def test_what_an_interrupted_snapshot_left_goes_after_a_day(store_files: Files, source: Path) -> None:
    taken(store_files, source)
    repository = Repository(store_files, "folder")
    left = store_files.push(repository.container_name(b"x" * 12), b"left")
    kept(store_files, Keep(last=1).kept, now_ms=lambda: left.time_ms + UNFINISHED_MS // 2)
    assert store_files.find(left.filename) is not None
    kept(store_files, Keep(last=1).kept, now_ms=lambda: left.time_ms + UNFINISHED_MS + 1)
    assert store_files.find(left.filename) is None


def test_an_interrupted_snapshot_goes_on_where_it_was(
    store: FileStorage, user: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskworker.folders.snapshots.packing._UNINDEXED_BYTES_MAX", 1)
    files, dying = StoreFiles(store, user), Dying(store, user)
    make(source, {b"%d" % number: ("file", os.urandom(5_000_000), 0o644, 5) for number in range(4)})
    dying.changes_left = 6  # the record, and two indexes with a change of it each
    with pytest.raises(KeyboardInterrupt):
        taken(dying, source)
    assert Repository(files, "folder").record.snapshots == ()
    now_ms = next(files.heads("")).time_ms
    assert kept(files, lambda snapshots: [], now_ms=lambda: now_ms).deleted == 0, "it may be going on"
    assert 0 < taken(files, source).added < 15_000_000
    assert described(restored(files, tmp_path / "target")) == described(source)
    assert Repository(files, "folder").record.pending == ()
    assert kept(files, Keep(last=1).kept, now_ms=lambda: now_ms + 2 * UNFINISHED_MS).forgotten == []
    assert described(restored(files, tmp_path / "again")) == described(source)


class Dying(StoreFiles):
    """A store whose user loses power after some changes."""

    changes_left = 0

    def _change(self) -> None:
        self.changes_left -= 1
        if self.changes_left < 0:
            raise KeyboardInterrupt

    def push_after(self, name: str, content: Any, head: str | None) -> Any:
        self._change()
        return super().push_after(name, content, head)

    def push(self, name: str, content: Any) -> Any:
        self._change()
        return super().push(name, content)

    def delete_many(self, file_ids: Any) -> Any:
        for file_id in file_ids:
            self._change()
            yield from super().delete_many([file_id])


@pytest.mark.parametrize("changes", range(8))
def test_a_crash_while_forgetting_loses_nothing(
    store: FileStorage, user: str, source: Path, tmp_path: Path, changes: int
) -> None:
    files = StoreFiles(store, user)
    make(source, {b"a": ("file", os.urandom(5_000_000), 0o644, 5), b"b": ("file", b"1", 0o644, 5)})
    taken(files, source)
    (source / "a").unlink()
    taken(files, source)
    dying = Dying(store, user)
    dying.changes_left = changes
    with contextlib.suppress(KeyboardInterrupt):
        kept(dying, Keep(last=1).kept)
    assert described(restored(files, tmp_path / "target")) == described(source)
    later_ms = UNFINISHED_MS * 2 + next(files.heads("")).time_ms
    kept(files, Keep(last=1).kept, now_ms=lambda: later_ms)
    assert sum(head.size for head in files.heads("")) < 10_000
    assert described(restored(files, tmp_path / "again")) == described(source)


class Racing(StoreFiles):
    """Lets something happen before a record is replaced for the first time."""

    before: Callable[[], object] | None = None

    def push_after(self, name: str, content: Any, head: str | None) -> Any:
        before, self.before = self.before, None
        if before is not None:
            before()
        return super().push_after(name, content, head)


def test_two_snapshots_at_once_are_both_kept(store: FileStorage, user: str, source: Path) -> None:
    files, racing = StoreFiles(store, user), Racing(store, user)
    make(source, {b"a": FILE})
    racing.before = lambda: taken(files, source, note="other")
    taken(racing, source)
    assert sorted(each.note for each in Repository(files, "folder").record.snapshots) == ["", "other"]


def test_a_snapshot_does_not_outlive_what_was_deleted_below_it(store: FileStorage, user: str, source: Path) -> None:
    files, racing = StoreFiles(store, user), Racing(store, user)
    make(source, {b"a": ("file", b"1", 0o644, 5)})
    taken(files, source)
    racing.before = lambda: kept(files, lambda snapshots: [])
    with pytest.raises(ConflictError, match="take it again"):
        taken(racing, source)
    assert Repository(files, "folder").record.snapshots == ()


def snapshot_at(*when: int) -> Snapshot:
    entry = Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, 0, 0, 1, content=(bytes(32),))
    time_ms = int(datetime(*when).astimezone().timestamp() * 1000)  # type: ignore[arg-type]
    return Snapshot(time_ms, entry, "host", "/", 0, 0, 0)


def test_rules_keep_the_newest_of_each_period() -> None:
    snapshots = [
        first := snapshot_at(2026, 1, 30, 12),
        second := snapshot_at(2026, 2, 27, 12),
        third := snapshot_at(2026, 3, 2, 12),
        fourth := snapshot_at(2026, 3, 3, 9),
        fifth := snapshot_at(2026, 3, 3, 12),
    ]
    assert Keep(last=2).kept(snapshots) == [fifth, fourth]
    assert Keep(daily=2).kept(snapshots) == [fifth, third]
    assert Keep(weekly=2).kept(snapshots) == [fifth, second]
    assert Keep(monthly=9).kept(snapshots) == [fifth, second, first]
    assert Keep(last=1, daily=2, monthly=2).kept(snapshots) == [fifth, third, second]
    with pytest.raises(InvalidArgument):
        Keep().kept(snapshots)
    future, past = (msgspec.structs.replace(first, time_ms=time_ms) for time_ms in (10**18, -(10**18)))
    assert Keep(last=1).kept([*snapshots, future, past]) == [future, fifth, past], "no calendar has their times"


# -- any tree, any bytes ------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees(text_names=False), trees(text_names=False))
def test_any_two_trees_come_back(store: FileStorage, one: dict[bytes, Any], two: dict[bytes, Any]) -> None:
    files = StoreFiles(store, uuid.uuid4().hex)
    with tempfile.TemporaryDirectory() as directory:
        for number, tree in enumerate((one, two)):
            source = Path(directory) / f"source{number}"
            make(source, tree)
            taken(files, source)
        for number, snapshot in enumerate(Repository(files, "folder").record.snapshots):
            target = restored(files, Path(directory) / f"target{number}", snapshot.id)
            assert described(target) == described(Path(directory) / f"source{number}")
        kept(files, lambda snapshots: [snapshots[-1]])
        assert described(restored(files, Path(directory) / "left")) == described(Path(directory) / "source1")


@given(st.binary(max_size=300))
def test_any_bytes_are_typed_errors(data: bytes) -> None:
    for decode in (decode_index, decode_record, decode_directory):
        with contextlib.suppress(FolderDamaged):
            decode(data)


@given(st.dictionaries(st.binary(min_size=32, max_size=32), st.tuples(st.integers(0, 3), st.integers(0, 1 << 50))))
def test_indexes_find_what_they_were_given(blobs: dict[bytes, tuple[int, int]]) -> None:
    places = {blob: Place(bytes([container]) * 12, offset, offset // 3) for blob, (container, offset) in blobs.items()}
    index = decode_index(encode_index(places.items()))
    assert len(index) == len(places)
    for blob, place in places.items():
        position = index.position_of(blob)
        assert position is not None
        assert (index[position], index.place_at(position)) == (blob, place)
    assert index.position_of(b"\0" * 32) is None or b"\0" * 32 in places
    assert [*index] == sorted(places)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 3000])
@pytest.mark.parametrize("prefix", [b"", b"\xff\xff\xff\xff"], ids=["hashes", "all alike"])
def test_indexes_of_many_blobs_find_each(count: int, prefix: bytes) -> None:
    names = [(prefix + blob_id(b"%d" % number))[:32] for number in range(count)]
    index = decode_index(encode_index((name, Place(b"c" * 12, at, at)) for at, name in enumerate(names)))
    ordered = sorted(names)
    assert [index.position_of(name) for name in ordered] == [*range(count)]
    strangers = [blob_id(b"x%d" % number) for number in range(200)]
    assert [index.position_of(name) for name in strangers] == [None] * 200


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 20_000])
def test_large_directories_are_split_and_change_in_few_parts(count: int) -> None:
    blobs: dict[bytes, bytes] = {}

    def store(data: bytes) -> bytes:
        blobs[blob_id(data)] = data
        return blob_id(data)

    def entry(number: int) -> Entry:
        return Entry(b"%08d" % number, Kind.FIFO, 0o644, 0, 0, number, 0, 1)

    entries = [entry(number) for number in range(count)]
    directory = store_directory(entries, store)
    assert list(read_directory(directory, blobs.__getitem__)) == entries
    before = dict(blobs)
    longer = [
        *entries[: count // 2],
        Entry(b"%08d+" % (count // 2), Kind.FIFO, 0, 0, 0, 0, 0, 1),
        *entries[count // 2 :],
    ]
    longer.sort(key=lambda each: each.name)
    store_directory(longer, store)
    assert len(blobs.keys() - before.keys()) <= 3
    assert max(map(len, blobs.values())) < 1 << 20


def index_of(containers: int, ids: bytes, places: bytes) -> bytes:
    return msgspec.msgpack.encode(IndexDocument(1, (b"c" * 12,) * containers, ids, places))


@pytest.mark.parametrize(
    "data",
    [
        index_of(1, b"x" * 31, b""),
        index_of(1, b"x" * 32, b""),
        index_of(0, b"x" * 32, bytes(20)),
        index_of(1, b"x" * 64, bytes(40)),
        index_of(1, b"x" * 32, bytes(4) + b"\xff" * 16),
    ],
)
def test_indexes_that_cannot_be_are_refused(data: bytes) -> None:
    with pytest.raises(FolderDamaged):
        decode_index(data)


class Hostile:
    """A folder whose directories say what its author wants."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.blobs: list[tuple[bytes, bytes]] = []

    def blob(self, data: bytes) -> bytes:
        self.blobs.append((blob_id(data), data))
        return blob_id(data)

    def directory(self, *entries: Entry) -> bytes:
        return self.blob(msgspec.msgpack.encode(Directory(1, entries)))

    def entry(self, name: bytes, kind: Kind = Kind.FILE, *content: bytes, **more: Any) -> Entry:
        return Entry(name, kind, more.pop("mode", 0o644), 0, 0, 0, 0, 1, content=content, **more)

    def restored(self, top: bytes, target: Path) -> Problems:
        repository = Repository(self.files, "folder", create=True)
        container = b"c" * 12
        self.files.push(repository.container_name(container), b"".join(data for _, data in self.blobs))
        offset, places = 0, {}
        for blob, data in self.blobs:
            places[blob] = Place(container, offset, len(data))
            offset += len(data)
        self.files.push(repository.container_name(b"i" * 12), encode_index(places.items()))
        root = self.entry(b"", Kind.DIRECTORY, top, mode=0o755)
        snapshot = Snapshot(0, root, "", "", 0, 0, 0)
        repository.save(msgspec.structs.replace(repository.record, snapshots=(snapshot,), indexes=(b"i" * 12,)))
        repository = Repository(self.files, "folder")
        problems: Problems = {}
        restore(repository, repository.snapshot("latest"), target, problem=problems.__setitem__)
        return problems


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"/etc", b"", b"\0", b"x" * 256])
def test_names_that_lead_out_are_refused(store_files: Files, tmp_path: Path, name: bytes) -> None:
    hostile = Hostile(store_files)
    top = hostile.directory(hostile.entry(name, Kind.FILE, hostile.blob(b"x")))
    problems = hostile.restored(top, tmp_path / "inner" / "target")
    assert [type(error) for error in problems.values()] == [FolderDamaged]
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "target"]


def test_nothing_is_written_through_a_link_of_the_same_snapshot(store_files: Files, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    hostile = Hostile(store_files)
    inner = hostile.directory(hostile.entry(b"x", Kind.FILE, hostile.blob(b"through")))
    link = hostile.entry(b"door", Kind.SYMLINK, target=os.fsencode(outside))
    top = hostile.directory(link, hostile.entry(b"door", Kind.DIRECTORY, inner))
    problems = hostile.restored(top, tmp_path / "target")
    assert [type(error) for error in problems.values()] == [FolderDamaged], "a name comes twice"
    target = tmp_path / "second"
    target.mkdir()
    (target / "door").symlink_to(outside)
    hostile = Hostile(StoreFiles(store_files._store, "other"))  # type: ignore[attr-defined]
    inner = hostile.directory(hostile.entry(b"x", Kind.FILE, hostile.blob(b"through")))
    problems = hostile.restored(hostile.directory(hostile.entry(b"door", Kind.DIRECTORY, inner)), target)
    assert {type(error) for error in problems.values()} == {Unstorable}
    assert not list(outside.iterdir())


def test_damaged_content_is_told_and_not_kept(store_files: Files, tmp_path: Path) -> None:
    hostile = Hostile(store_files)
    wrong = blob_id(b"something else")
    top = hostile.directory(hostile.entry(b"a", Kind.FILE, wrong), hostile.entry(b"b", Kind.FILE, hostile.blob(b"b")))
    hostile.blobs.append((wrong, b"not what it says"))
    problems = hostile.restored(top, tmp_path / "target")
    assert list(problems) == [b"a"]
    assert isinstance(problems[b"a"], FolderDamaged)
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["b"]


def test_special_bits_are_not_restored(store_files: Files, tmp_path: Path) -> None:
    hostile = Hostile(store_files)
    top = hostile.directory(hostile.entry(b"su", Kind.FILE, hostile.blob(b"x"), mode=0o6755))
    assert not hostile.restored(top, tmp_path / "target")
    assert stat.S_IMODE((tmp_path / "target/su").stat().st_mode) == 0o755


def test_records_come_back() -> None:
    record = msgspec.structs.replace(decode_record(b""), snapshots=(snapshot_at(2026, 1, 1),), generation=3)
    assert decode_record(encode_record(record)) == record

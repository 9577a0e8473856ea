"""Syncs bring a directory and a folder in the store to the same state, and lose nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import FileStorage, Version
from storage.errors import InvalidArgument, StoreLocked, StoreUnavailable
from taskworker.folders import get_tree, push_tree
from taskworker.folders.embedded import StoreFiles
from taskworker.folders.ports import Files
from taskworker.folders.syncing import SyncReport, replica, sync_tree, transferring
from taskworker.folders.syncing.planning import conflict_name
from taskworker.folders.syncing.replica import Replica
from taskworker.folders.syncing.state import SyncState
from tests.folders.trees import described
from tests.functions.processes import FunctionPool

Problems = dict[bytes, Exception]
NOW_MS = 1_700_000_000_000
MARK = "(conflict, {} 2023-11-14 221320)"


class Machine:
    """A machine with a directory that is synced."""

    def __init__(self, files: Files, home: Path, name: str) -> None:
        self.files = files
        self.name = name
        self.root = home / name
        self.state = home / f"{name}-state"
        self.root.mkdir()

    def sync(self, problems: Problems | None = None, **options: Any) -> SyncReport:
        found: Problems = {} if problems is None else problems
        given: dict[str, Any] = {"allow_empty": True, "now_ms": lambda: NOW_MS} | options
        report = sync_tree(
            self.files,
            self.root,
            "folder",
            place="here",
            problem=found.__setitem__,
            host=self.name,
            state_home=self.state,
            **given,
        )
        assert problems is not None or not found, found
        return report

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def texts(self) -> dict[str, str]:
        """Contents of all files by path."""
        return {
            str(path.relative_to(self.root)): path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }


def shape(root: Path) -> dict[bytes, Any]:
    """A described tree without times, which syncs do not keep of directories, nor of equal files."""
    return {path: (what[0], what[1], *what[3:]) for path, what in described(root).items() if path}


@pytest.fixture
def machines(files: Files, tmp_path: Path) -> tuple[Machine, Machine]:
    return Machine(files, tmp_path, "one"), Machine(files, tmp_path, "two")


@pytest.fixture
def here(store_files: Files, tmp_path: Path) -> tuple[Machine, Machine]:
    """The same, of an embedded store."""
    return Machine(store_files, tmp_path, "one"), Machine(store_files, tmp_path, "two")


def test_changes_go_both_ways(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    one.write("a", "1")
    one.write("d/b", "2")
    (one.root / "empty").mkdir()
    (one.root / "link").symlink_to("d/b")
    (one.root / "a").chmod(0o755)
    (one.root / "large").write_bytes(os.urandom(3_000_000))
    assert one.sync().sent == 4
    assert two.sync().fetched == 4
    assert shape(two.root) == shape(one.root)
    two.write("a", "1 changed")
    two.write("d/new", "3")
    (two.root / "d" / "b").unlink()
    (two.root / "link").unlink()
    (two.root / "link").symlink_to("a")
    (two.root / "large").rename(two.root / "moved")
    (two.root / "empty").rmdir()
    report = two.sync()
    assert (report.sent, report.deleted_there, report.conflicts) == (4, 2, 0)
    report = one.sync()
    assert (report.fetched, report.deleted_here, report.conflicts) == (4, 2, 0)
    assert shape(two.root) == shape(one.root)
    for machine in machines:
        report = machine.sync()
        assert (report.sent, report.fetched, report.deleted_here, report.deleted_there) == (0, 0, 0, 0)


def test_versions_of_the_same_content_are_no_changes(store: FileStorage, user: str, tmp_path: Path) -> None:
    """As when files are encrypted that were stored in clear."""
    one, two = (Machine(StoreFiles(store, user), tmp_path, name) for name in ("one", "two"))
    for name in ("deleted", "changed", "left", "in/deleted", "changed there"):
        one.write(name, f"was {name}")
    one.sync()
    two.sync()
    for name in ("deleted", "changed", "left", "in/deleted"):
        again = store.push(f"was {name}".encode(), filename=f"folder/{name}", user_id=user, note="anew")
        assert not again.unchanged
    store.push(b"WAS changed there", filename="folder/changed there", user_id=user)
    (one.root / "deleted").unlink()
    shutil.rmtree(one.root / "in")
    (one.root / "changed there").unlink()
    one.write("changed", "is changed")
    report = one.sync()
    assert (report.conflicts, report.deleted_there, report.sent) == (0, 2, 1)
    wanted = {"changed": "is changed", "changed there": "WAS changed there", "left": "was left"}
    assert one.texts() == wanted
    two.sync()
    assert two.texts() == wanted


def test_what_nobody_changed_is_not_stored_again(here: tuple[Machine, Machine]) -> None:
    one, two = here
    one.write("a", "1")
    one.sync()
    two.sync()
    before = [head.version_id for head in one.files.heads("")]
    os.utime(one.root / "a")
    one.sync()
    two.sync()
    assert [head.version_id for head in one.files.heads("")] == before


def test_of_two_changes_both_are_kept(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    one.write("d/notes.txt", "at first")
    one.sync()
    two.sync()
    one.write("d/notes.txt", "one's")
    two.write("d/notes.txt", "two's")
    one.sync()
    assert two.sync().conflicts == 1
    one.sync()
    wanted = {"d/notes.txt": "one's", f"d/notes {MARK.format('two')}.txt": "two's"}
    assert one.texts() == two.texts() == wanted


def test_equal_changes_are_no_conflict(here: tuple[Machine, Machine]) -> None:
    one, two = here
    for machine in here:
        machine.write("a", "same")
        assert machine.sync().conflicts == 0
    assert one.texts() == two.texts() == {"a": "same"}


def test_a_change_wins_over_a_deletion(here: tuple[Machine, Machine]) -> None:
    one, two = here
    one.write("a", "1")
    one.write("d/b", "1")
    one.sync()
    two.sync()
    (one.root / "a").unlink()
    two.write("a", "2")
    one.write("d/b", "2")
    shutil.rmtree(two.root / "d")
    one.sync()
    two.sync()
    one.sync()
    assert one.texts() == two.texts() == {"a": "2", "d/b": "2"}


@pytest.mark.parametrize("first", [0, 1])
def test_a_file_and_a_directory_of_one_name(here: tuple[Machine, Machine], first: int) -> None:
    here[0].write("a", "file")
    here[1].write("a/b", "inner")
    for machine in (here[first], here[1 - first], here[first]):
        machine.sync()
    texts = here[0].texts()
    assert texts == here[1].texts()
    assert texts.pop("a/b") == "inner"
    assert list(texts.values()) == ["file"]


def test_a_directory_takes_the_place_of_a_file(here: tuple[Machine, Machine]) -> None:
    one, two = here
    one.write("a", "1")
    one.write("b/c", "2")
    one.sync()
    two.sync()
    (one.root / "a").unlink()
    one.write("a/b", "3")
    shutil.rmtree(one.root / "b")
    one.write("b", "4")
    one.sync()
    two.sync()
    assert one.texts() == two.texts() == {"a/b": "3", "b": "4"}
    assert shape(two.root) == shape(one.root)


def test_modes_are_synced(here: tuple[Machine, Machine]) -> None:
    one, two = here
    one.write("a", "1")
    one.sync()
    two.sync()
    (two.root / "a").chmod(0o700)
    assert two.sync().sent == 0
    one.sync()
    assert (one.root / "a").stat().st_mode & 0o777 == 0o700
    assert one.sync().fetched == two.sync().fetched == 0


def test_what_is_left_out_is_left_alone(here: tuple[Machine, Machine]) -> None:
    one, two = here
    one.write("a.tmp", "1")
    one.write("d/b", "1")
    one.sync()
    one.write(".twignore", "*.tmp\n/d/\n")
    (one.root / "d" / "b").unlink()
    assert one.sync().deleted_there == 0
    two.sync()
    two.write("c.tmp", "2")
    two.sync()
    assert two.texts().keys() == {".twignore", "a.tmp", "d/b", "c.tmp"}, "what is left out there comes from the store"
    assert "c.tmp" not in {head.filename for head in one.files.heads("folder/c")}


def test_what_is_left_out_and_deleted_here_stays_in_the_store(here: tuple[Machine, Machine]) -> None:
    one, two = here
    for name in ("a.tmp", "d/b.tmp", "d/kept", "e/f/g", "plain"):
        one.write(name, "1")
    one.sync()
    two.sync()
    one.write(".twignore", "*.tmp\n")
    one.write("e/.twignore", "/f/\n")
    one.write("d/.twignore", "!b.tmp\n")
    for name in ("a.tmp", "d/b.tmp", "e/f/g", "plain"):
        (one.root / name).unlink()
    (one.root / "e" / "f").rmdir()
    assert one.sync().deleted_there == 2  # d/b.tmp and plain
    assert one.sync().fetched == 0
    two.sync()
    assert two.texts().keys() == {"a.tmp", "d/kept", "e/f/g", ".twignore", "d/.twignore", "e/.twignore"}
    (one.root / ".twignore").unlink()
    one.sync()
    two.sync()
    assert "a.tmp" in one.texts(), "what nobody asked to delete came back, as the rule has ended"
    assert "a.tmp" in two.texts()


@pytest.mark.parametrize("where", ["", "d/"])
@pytest.mark.parametrize("how", ["malformed", "[z-a]", "link"])
def test_rules_that_cannot_be_read_change_nothing(here: tuple[Machine, Machine], where: str, how: str) -> None:
    one, two = here
    for name in ("a.tmp", "kept", "d/a.tmp", "d/kept"):
        one.write(name, "1")
    one.write(f"{where}.twignore", "*.tmp\n")
    (one.root / f"{where}.twignore").unlink()
    one.sync()
    two.sync()
    one.write(f"{where}.twignore", "*.tmp\n")
    (one.root / where / "a.tmp").unlink()
    one.sync()
    (one.root / f"{where}.twignore").unlink()
    if how == "link":
        (one.root / f"{where}.twignore").symlink_to("elsewhere")
    else:
        one.write(f"{where}.twignore", f"*.tmp\n{'!' if how == 'malformed' else how}\n")
    one.write(f"{where}secret.tmp", "1")
    problems: Problems = {}
    if where:
        assert (one.sync(problems).deleted_there, [*problems]) == (0, [b"d"])
        assert "left alone" in str(problems[b"d"])
    else:
        with pytest.raises(InvalidArgument, match="left alone"):
            one.sync(problems)
    two.sync()
    assert f"{where}a.tmp" in two.texts()
    assert f"{where}secret.tmp" not in two.texts()


def test_nothing_is_written_through_links(here: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = here
    one.write("d/a", "1")
    one.sync()
    outside = tmp_path / "outside"
    outside.mkdir()
    (two.root / "d").symlink_to(outside)
    two.sync()
    one.sync()
    assert list(outside.iterdir()) == []
    assert one.texts() == two.texts() == {"d/a": "1"}
    assert os.readlink(two.root / f"d {MARK.format('two')}") == str(outside)


def test_names_that_one_side_cannot_have_are_told(here: tuple[Machine, Machine]) -> None:
    one, _ = here
    one.files.push("folder/a//b", b"1")
    one.files.push("folder/c/", b"1")
    one.files.push("folder/" + "n" * 300, b"1")
    (one.root / os.fsdecode(b"\xff")).write_bytes(b"1")
    problems: Problems = {}
    assert one.sync(problems).failed == 4
    assert set(problems) == {b"a//b", b"c/", b"n" * 300, b"\xff"}
    assert len(list(one.files.heads("folder/"))) == 3, "and no listing, as there is nothing to say"


def test_names_that_differ_in_case_only(here: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = here
    one.write("readme", "1")
    one.write("README", "2")
    one.sync()
    monkeypatch.setattr(Replica, "ignores_case", lambda self: True)
    problems: Problems = {}
    assert two.sync(problems).failed == 1
    assert two.texts() == {"README": "2"}
    assert one.sync().deleted_here == 0


def test_an_empty_side_deletes_nothing_unless_it_may(here: tuple[Machine, Machine]) -> None:
    one, two = here
    one.write("a", "1")
    one.sync()
    two.sync()
    (one.root / "a").unlink()
    with pytest.raises(InvalidArgument, match="the directory is empty"):
        one.sync(allow_empty=False)
    one.sync()
    with pytest.raises(InvalidArgument, match="the folder in the store is empty"):
        two.sync(allow_empty=False)
    assert two.texts() == {"a": "1"}


def test_directories_alone_are_empty_too(here: tuple[Machine, Machine]) -> None:
    """The disk is not mounted, or new: then it has `lost+found`."""
    one, two = here
    one.write("a", "1")
    (one.root / "d").mkdir()
    one.sync()
    two.sync()
    (one.root / "a").unlink()
    with pytest.raises(InvalidArgument, match="empty"):
        one.sync(allow_empty=False)
    assert two.sync().deleted_here == 0
    one.sync()
    assert two.sync().deleted_here == 1
    (two.root / "e").mkdir()
    two.sync(allow_empty=False)
    two.sync(allow_empty=False)


def test_links_and_directories_outlive_an_interrupted_sync(
    store_files: Files, here: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = here
    one.write("a", "1")
    (one.root / "old").symlink_to("a")
    (one.root / "changed").symlink_to("a")
    one.sync()
    (one.root / "old").unlink()
    (one.root / "changed").unlink()
    (one.root / "changed").symlink_to("b")
    (one.root / "link").symlink_to("a")
    (one.root / "empty").mkdir()
    with monkeypatch.context() as broken:

        def fails(*_: Any) -> None:
            raise StoreUnavailable("it went away")

        broken.setattr(type(store_files), "push_after", fails)
        with pytest.raises(StoreUnavailable):
            one.sync()
    assert one.sync().conflicts == 0
    assert (one.root / "link").is_symlink()
    assert (one.root / "empty").is_dir()
    assert not (one.root / "old").is_symlink(), "its deletion outlives it as well"
    two.sync()
    assert shape(two.root) == shape(one.root)


def test_a_file_with_files_below_it_stays(store: FileStorage, user: str, here: tuple[Machine, Machine]) -> None:
    one, _ = here
    one.write("d", "1")
    one.sync()
    below = store.push(b"x", filename="folder/d/x", user_id=user)
    for _ in range(3):
        problems: Problems = {}
        one.sync(problems)
        assert list(problems) == [b"d"]
    store.delete(below.file_id, user_id=user)
    for _ in range(2):
        one.sync()
    assert one.texts() == {"d": "1"}
    assert store.find("folder/d", user_id=user) is not None


def test_a_file_that_is_back_is_not_deleted_there(
    store: FileStorage, user: str, here: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor was saving it, by renaming, when the directory was looked through."""
    one, _ = here
    one.write("a", "1")
    one.write("b", "2")
    one.sync()
    scan = Replica.scan

    def without_a(self: Replica, *arguments: Any, **named: Any) -> Any:
        found = scan(self, *arguments, **named)
        found.pop(b"a", None)
        return found

    monkeypatch.setattr(Replica, "scan", without_a)
    problems: Problems = {}
    assert one.sync(problems).deleted_there == 0
    monkeypatch.undo()
    one.sync()
    assert one.texts() == {"a": "1", "b": "2"}
    head = store.find("folder/a", user_id=user)
    assert head is not None
    assert len(store.history(head.file_id, user_id=user)) == 1


def test_a_dry_run_changes_nothing(here: tuple[Machine, Machine]) -> None:
    one, _ = here
    one.write("a", "1")
    one.files.push("folder/b", b"2")
    told: list[tuple[str, bytes]] = []
    one.sync(dry_run=True, told=lambda what, path: told.append((what, path)))
    assert told == [("send", b"a"), ("fetch", b"b")]
    assert one.texts() == {"a": "1"}
    assert [head.filename for head in one.files.heads("")] == ["folder/b"]
    assert not list(one.state.glob("*[0-9a-f]"))


def test_what_is_kept_of_syncs_is_not_synced_itself(here: tuple[Machine, Machine]) -> None:
    one, _ = here
    one.state = one.root / ".local" / "state"
    one.write("a", "1")
    for _ in range(2):
        one.sync()
    assert {head.filename for head in one.files.heads("folder/")} == {"folder/", "folder/a"}


def test_a_change_within_one_tick_of_the_clock_is_seen(here: tuple[Machine, Machine]) -> None:
    one, two = here
    one.write("a", "1")
    one.sync()
    status = (one.root / "a").stat()
    state = SyncState(one.root, "here", "folder/", one.state)
    (entry,) = state.load().values()
    assert entry.ctime_ns == 0, "it was written just before it was read"
    one.write("a", "2")
    os.utime(one.root / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    one.sync()
    two.sync()
    assert two.texts() == {"a": "2"}


def test_one_sync_of_a_directory_at_a_time(here: tuple[Machine, Machine]) -> None:
    one, _ = here
    with SyncState(one.root, "here", "folder/", one.state).locked(), pytest.raises(StoreLocked):
        one.sync()


def test_a_folder_that_was_pushed_is_synced_and_got(here: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = here
    one.write("a", "1")
    (one.root / "link").symlink_to("a")
    push_tree(one.files, one.root, "folder")
    assert two.sync().fetched == 2
    two.write("a", "2")
    two.sync()
    get_tree(one.files, "folder", tmp_path / "got")
    assert shape(tmp_path / "got") == shape(two.root)
    assert one.sync().conflicts == 1, "it was never synced, so nobody knows which is newer"


# -- interruptions and races -------------------------------------------------------------------------


class Watched(StoreFiles):
    """A store that may end a sync at any call, or do something before one."""

    calls_left = 1 << 30
    before: Callable[[str], object] | None = None

    def __getattribute__(self, name: str) -> Any:
        if name in ("find", "heads", "push_after", "push_many", "get_many", "delete"):
            self.calls_left -= 1
            if self.calls_left < 0:
                raise KeyboardInterrupt
            before = self.before
            if before is not None:
                before(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("saved", [True, False], ids=["ended", "killed"])
def test_an_interrupted_sync_goes_on(
    store: FileStorage, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    """Ended at each call to the store; if it is killed, the state is not saved either."""
    for calls in range(1, 12):
        files = Watched(store, f"{user}-{calls}")
        home = tmp_path / str(calls)
        home.mkdir()
        one, two = Machine(files, home, "one"), Machine(files, home, "two")
        for number in range(4):
            one.write(str(number), f"first {number}")
        one.sync()
        two.sync()
        one.write("0", "of one")
        (one.root / "1").unlink()
        two.write("0", "of two")
        (two.root / "2").rename(two.root / "2-moved")
        two.write("new", "new")
        one.sync()
        files.calls_left = calls
        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            if not saved:
                patched.setattr(SyncState, "save", lambda self, entries: None)
            two.sync()
        files.calls_left = 1 << 30
        two.sync()
        one.sync()
        wanted = {"0": "of one", "2-moved": "first 2", "3": "first 3", "new": "new"}
        assert one.texts() == two.texts() == wanted | {f"0 {MARK.format('two')}": "of two"}


@pytest.mark.parametrize("once", [True, False])
def test_what_is_not_durable_here_does_not_count_as_synced(
    here: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    one, two = here
    one.write("a", "content")
    one.sync()

    def failing(_descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    def failing_once(_descriptor: int) -> None:
        broken.undo()  # as the kernel does: it tells of an error once
        failing(_descriptor)

    with monkeypatch.context() as broken:
        broken.setattr(transferring, "_SAVED_EVERY", 1)
        broken.setattr(replica, "flush_file_system", failing_once if once else failing)
        with pytest.raises(OSError, match="the disk is broken"):
            two.sync()
    (two.root / "a").write_text("")  # what a power cut leaves of it
    two.sync()
    one.sync()
    assert one.texts()["a"] == "content"


@pytest.mark.parametrize("call", ["push_after", "push_many", "delete", "get_many"])
def test_what_others_store_meanwhile_is_kept(store: FileStorage, user: str, tmp_path: Path, call: str) -> None:
    files, others = Watched(store, user), StoreFiles(store, user)
    one = Machine(files, tmp_path, "one")
    for name in ("changed", "deleted", "fetched"):
        one.write(name, "1")
    one.sync()
    one.write("changed", "of one")
    one.write("new", "of one")
    (one.root / "deleted").unlink()
    others.push("folder/fetched", b"2")

    def before(name: str) -> None:
        if name == call:
            files.before = None
            for each in ("changed", "deleted", "new", "fetched"):
                others.push(f"folder/{each}", b"of others")

    files.before = before
    one.sync()
    one.sync()
    texts = one.texts()
    for name in ("changed", "new"):
        there = {text for path, text in texts.items() if path.startswith(name)}
        there.update(contents_in(store, user, f"folder/{name}"))
        assert {"of one", "of others"} <= there, (name, texts)
    assert {texts.get(name) for name in ("deleted", "fetched")} == {"of others"}


@pytest.mark.parametrize("what", ["changed", "appeared", "gone"])
def test_what_is_changed_here_meanwhile_is_kept(store: FileStorage, user: str, tmp_path: Path, what: str) -> None:
    files, others = Watched(store, user), StoreFiles(store, user)
    one = Machine(files, tmp_path, "one")
    one.write("a", "1")
    one.sync()
    others.push("folder/a", b"of others")
    others.push("folder/b", b"of others")

    def before(name: str) -> None:
        if name == "get_many":
            files.before = None
            if what == "changed":
                one.write("a", "of one")
            elif what == "appeared":
                one.write("b", "of one")
            else:
                (one.root / "a").unlink()

    files.before = before
    one.sync()
    texts = one.texts()
    assert (texts["a"], texts["b"]) == ("of others", "of others")
    assert ("of one" in texts.values()) == (what != "gone")


# -- a model -----------------------------------------------------------------------------------------


def contents_in(store: FileStorage, user: str, prefix: str = "") -> Iterator[str]:
    """The contents of all versions of all files whose names start with a prefix."""
    for head in store.list_files(user_id=user, prefix=prefix, limit=1000):
        if head.filename != "folder/":
            for version in store.history(head.file_id, user_id=user):
                yield store.get(head.file_id, user_id=user, version_id=version.version_id).decode()


class Deleting(StoreFiles):
    """Notes what is deleted, with all its versions."""

    def __init__(self, store: FileStorage, user: str) -> None:
        super().__init__(store, user)
        self.deleted: set[str] = set()
        self.heads_deleted: list[tuple[str, str]] = []

    def delete(self, version: Version) -> None:
        contents = [
            self._store.get(version.file_id, user_id=self._user, version_id=each.version_id).decode()
            for each in self._store.history(version.file_id, user_id=self._user)
        ]
        super().delete(version)
        self.deleted.update(contents)
        self.heads_deleted.append((version.filename.removeprefix("folder/"), contents[0]))


_PLACES = st.sampled_from(["a", "b", "d", "d/a", "d/b", "d/e/a", "e/a"])
_EDITS = st.one_of(
    st.tuples(st.just("write"), _PLACES),
    st.tuples(st.just("remove"), _PLACES),
    st.tuples(st.just("move"), st.tuples(_PLACES, _PLACES)),
    st.tuples(st.just("link"), _PLACES),
    st.tuples(st.just("mkdir"), _PLACES),
    st.tuples(st.just("sync"), st.none()),
)


@settings(suppress_health_check=list(HealthCheck), max_examples=25, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 1), _EDITS), max_size=25))
def test_nothing_is_lost_and_both_become_equal(store: FileStorage, edits: list[tuple[int, Any]]) -> None:
    user = f"user-{uuid.uuid4().hex}"
    files = Deleting(store, user)
    with tempfile.TemporaryDirectory() as place:
        machines = [Machine(files, Path(place), name) for name in ("one", "two")]
        synced: list[dict[str, str]] = [{}, {}]
        kept: set[str] = set()

        def sync(number: int) -> None:
            machine = machines[number]
            before = machine.texts()
            kept.update(text for path, text in before.items() if synced[number].get(path) != text)
            files.heads_deleted.clear()
            machine.sync()
            for path, text in files.heads_deleted:
                is_moved = text in machine.texts().values()  # a file that a directory of the same name was kept beside
                assert is_moved or (synced[number].get(path) == text and before.get(path) != text), (path, text)
            synced[number] = machine.texts()
            there = {text for each in machines for text in each.texts().values()} | {*contents_in(store, user)}
            assert kept <= there | files.deleted

        for at, (number, edit) in enumerate(edits):
            if edit[0] == "sync":
                sync(number)
            else:
                with contextlib.suppress(OSError):
                    _edit(machines[number].root, edit[0], edit[1], f"{at} of {machines[number].name}")
        for number in (0, 1, 0, 1):
            sync(number)
        assert shape(machines[0].root) == shape(machines[1].root)
        for machine in machines:
            report = machine.sync()
            assert (report.sent, report.fetched, report.deleted_here, report.deleted_there) == (0, 0, 0, 0)


def _edit(root: Path, what: str, where: Any, text: str) -> None:
    if what == "move":
        (root / where[1]).parent.mkdir(parents=True, exist_ok=True)
        (root / where[0]).rename(root / where[1])
        return
    path = root / where
    if what == "remove":
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "write":
        path.write_text(text)
    elif what == "link":
        path.symlink_to(text)
    else:
        path.mkdir()


@given(st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_names_of_copies_can_be_had(name: bytes) -> None:
    taken: set[bytes] = set()
    for _ in range(3):
        found = conflict_name(b"d/" + name, "a host/with a slash", NOW_MS, taken.__contains__)
        taken.add(found)
        assert found.startswith(b"d/")
        assert len(found) <= 257
        assert b"/" not in found[2:]
    assert len(taken) == 3


def test_the_client_syncs(pool: FunctionPool, user: str, tmp_path: Path) -> None:
    client = pool.client
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    (one / "a").write_bytes(b"1")
    (one / "b.tmp").write_bytes(b"1")
    told: list[tuple[str, bytes]] = []
    report = client.sync_tree(one, "folder", user_id=user, exclude=["*.tmp"], told=lambda *what: told.append(what))
    assert (report.sent, told) == (1, [("sent", b"a")])
    assert client.sync_tree(str(two), "folder", user_id=user, timeout_s=60).fetched == 1
    (two / "a").unlink()
    with pytest.raises(InvalidArgument, match="the directory is empty"):
        client.sync_tree(two, "folder", user_id=user)
    assert client.sync_tree(two, "folder", user_id=user, allow_empty=True).deleted_there == 1
    assert client.sync_tree(one, "folder", user_id=user, exclude=["*.tmp"], allow_empty=True).deleted_here == 1
    assert os.listdir(one) == ["b.tmp"]

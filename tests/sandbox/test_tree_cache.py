"""Trees that workers share: made once, used only while nobody else could have changed them, removed when unused."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from taskworker.sandbox.tree_cache import UNUSED_KEPT_S, Recipe, Source, Tree, TreeCache

ROOT = Path(__file__).parents[2]
WAIT_S = 120
MAKER = """
import os, signal, sys
from pathlib import Path
from taskworker.sandbox.tree_cache import Recipe, Source, TreeCache

directory, file, notes, dies = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "dies"

def more():
    with notes.open("a") as told:
        told.write("made\\n")
    return ()

def files_of(source, content):
    yield source.target, content
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)

sources = [Source.at(file, "a/file")]
print("ready", flush=True)
sys.stdin.readline()
tree = TreeCache(directory).take(Recipe("", sources, {}, (), more, files_of))
print((tree.path / "a/file").read_text())
"""


class Kitchen:
    """A cache, a file that goes into trees of it, and how often one was made."""

    def __init__(self, directory: Path) -> None:
        self.cache = directory / "cache"
        self.file = directory / "file"
        self.library = directory / "library"
        self.file.write_text("content")
        self.library.write_text("library")
        self.made = 0

    def recipe(self) -> Recipe:
        return Recipe(
            about="",
            sources=[Source.at(self.file, "a/file")],
            texts={"etc/text": b"text"},
            directories=["empty/one"],
            more=self._more,
            files_of=_as_they_are,
        )

    def _more(self) -> Sequence[Source]:
        self.made += 1
        return [Source.at(self.library, "b/library")]

    def take(self) -> Tree:
        return TreeCache(self.cache).take(self.recipe())

    def taken(self) -> Path:
        """Take the tree and let go of it at once."""
        tree = self.take()
        tree.close()
        return tree.path

    def names(self) -> set[str]:
        return {path.name for path in self.cache.iterdir()}


def _as_they_are(source: Source, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield source.target, content


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    tmp_path.chmod(0o755)
    return Kitchen(tmp_path)


def test_a_tree_is_made_once_and_anybody_may_read_it(kitchen: Kitchen) -> None:
    before = os.umask(0o077)
    try:
        path = kitchen.taken()
    finally:
        os.umask(before)
    assert kitchen.taken() == path
    assert kitchen.made == 1
    assert {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()} == {
        "a/file",
        "b/library",
        "etc/text",
    }
    assert (path / "empty/one").is_dir()
    assert (path / "a/file").read_text() == "content"
    modes = {stat.S_IMODE(one.stat().st_mode) for one in (path, *path.rglob("*"))}
    assert modes == {0o755, 0o644}
    assert stat.S_IMODE(kitchen.cache.stat().st_mode) == 0o700


def test_what_could_be_executed_still_can(kitchen: Kitchen) -> None:
    kitchen.file.chmod(0o700)
    assert stat.S_IMODE((kitchen.taken() / "a/file").stat().st_mode) == 0o755


def test_another_source_makes_another_tree(kitchen: Kitchen) -> None:
    first = kitchen.taken()
    kitchen.file.write_text("other content")
    assert kitchen.taken() != first
    assert (kitchen.taken() / "a/file").read_text() == "other content"


def test_a_library_that_was_updated_is_taken_anew(kitchen: Kitchen) -> None:
    kitchen.taken()
    kitchen.library.write_text("a later library")
    assert (kitchen.taken() / "b/library").read_text() == "a later library"


def test_a_source_that_changes_meanwhile_is_refused(kitchen: Kitchen) -> None:
    recipe = kitchen.recipe()
    kitchen.file.write_text("something else")
    with pytest.raises(OSError, match="was changed just now"):
        TreeCache(kitchen.cache).take(recipe)


def _replace_by_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/hostname")


TAMPERED: dict[str, Callable[[Path], object]] = {
    "longer": lambda tree: (tree / "a/file").write_text("content, and more"),
    "as long": lambda tree: (tree / "a/file").write_text("CONTENT"),
    "cut off": lambda tree: os.truncate(tree / "a/file", 0),
    "gone": lambda tree: (tree / "a/file").unlink(),
    "one more": lambda tree: (tree / "a/other").write_text("x"),
    "a link": lambda tree: _replace_by_link(tree / "a/file"),
    "a pipe": lambda tree: os.mkfifo(tree / "a/pipe"),
    "file for the group": lambda tree: (tree / "a/file").chmod(0o664),
    "file for all": lambda tree: (tree / "a/file").chmod(0o646),
    "directory for all": lambda tree: (tree / "a").chmod(0o777),
    "top for all": lambda tree: tree.chmod(0o777),
    "manifest for all": lambda tree: (tree.parent / "manifest").chmod(0o666),
    "manifest cut off": lambda tree: (tree.parent / "manifest").write_text('{"files": {'),
    "manifest of another form": lambda tree: (tree.parent / "manifest").write_text("[1]"),
    "place for all": lambda tree: tree.parent.chmod(0o777),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_tree_that_is_not_what_it_was_is_made_again(kitchen: Kitchen, how: str) -> None:
    path = kitchen.taken()
    TAMPERED[how](path)
    assert (kitchen.taken() / "a/file").read_text() == "content"
    assert kitchen.made == 2
    assert {one.name for one in (path / "a").iterdir()} == {"file"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["tree/a/file", "tree/a", "tree", "manifest", "."])
def test_a_file_of_another_user_is_not_trusted(kitchen: Kitchen, name: str) -> None:
    path = kitchen.taken().parent / name
    os.chown(path, 65534, 65534)
    kitchen.taken()
    assert path.stat().st_uid == 0


def test_a_cache_that_others_may_write_to_is_refused(kitchen: Kitchen) -> None:
    kitchen.taken()
    kitchen.cache.chmod(0o770)
    with pytest.raises(OSError, match="could be changed by others"):
        kitchen.take()


def test_so_is_one_that_others_could_put_another_in_place_of(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(OSError, match=f"{open_to_all}, on the way to"):
        TreeCache(open_to_all / "below" / "cache")
    TreeCache(open_to_all / "own", trust_parents=True)
    open_to_all.chmod(0o1777)  # as /tmp: others can make files, but not touch this user's
    TreeCache(open_to_all / "below" / "cache")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_nothing_is_made_in_the_directory_of_another_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    with pytest.raises(OSError, match=f"{home}, on the way to"):
        TreeCache(home / ".cache" / "taskworker")
    assert list(home.iterdir()) == []


def test_a_link_on_the_way_is_followed_once(tmp_path: Path, kitchen: Kitchen) -> None:
    (tmp_path / "link").symlink_to(kitchen.cache.parent)
    tree = TreeCache(tmp_path / "link" / "cache").take(kitchen.recipe())
    tree.close()
    assert tree.path == kitchen.taken()


def test_a_place_where_nothing_may_be_executed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Status:
        f_flag = os.ST_NOEXEC

    monkeypatch.setattr(os, "statvfs", lambda _path: Status)
    with pytest.raises(OSError, match="noexec"):
        TreeCache(tmp_path / "cache")


def test_nothing_is_left_of_a_tree_that_could_not_be_made(kitchen: Kitchen) -> None:
    def full(_source: Source, _content: bytes) -> Iterator[tuple[str, bytes]]:
        raise OSError(errno.ENOSPC, "no space left")

    with pytest.raises(OSError, match="no space left"):
        TreeCache(kitchen.cache).take(dataclasses.replace(kitchen.recipe(), files_of=full))
    assert all(name.endswith(".lock") for name in kitchen.names())


def test_what_a_killed_process_leaves_counts_as_nothing(kitchen: Kitchen, tmp_path: Path) -> None:
    maker = _maker(kitchen, tmp_path / "notes", "dies")
    maker.communicate("\n", timeout=WAIT_S)
    assert maker.returncode == -signal.SIGKILL
    assert any(name.endswith(".new") for name in kitchen.names())
    maker = _maker(kitchen, tmp_path / "notes", "lives")
    assert maker.communicate("\n", timeout=WAIT_S)[0].splitlines()[-1] == "content"
    assert not any(name.endswith(".new") for name in kitchen.names())


def test_processes_that_start_together_make_one_tree(kitchen: Kitchen, tmp_path: Path) -> None:
    makers = [_maker(kitchen, tmp_path / "notes", "lives") for _ in range(4)]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
    assert all(maker.communicate("\n", timeout=WAIT_S)[0] == "content\n" for maker in makers)
    assert (tmp_path / "notes").read_text() == "made\n"


def _maker(kitchen: Kitchen, notes: Path, fate: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, str(kitchen.cache), str(kitchen.file), str(notes), fate],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_trees_that_nobody_uses_any_more_are_removed(kitchen: Kitchen) -> None:
    unused = kitchen.taken().parent
    kitchen.file.write_text("in use")
    used = kitchen.take()
    kitchen.file.write_text("used a moment ago")
    lately = kitchen.taken().parent
    for place in (unused, used.path.parent):
        lock = kitchen.cache / f"{place.name}.lock"
        long_ago = lock.stat().st_mtime - UNUSED_KEPT_S - 60
        os.utime(lock, (long_ago, long_ago))
    kitchen.file.write_text("made now, which is when others go")
    newest = kitchen.taken().parent
    kept = (used.path.parent, lately, newest)
    assert kitchen.names() == {name for place in kept for name in (place.name, f"{place.name}.lock")}
    assert (used.path / "a/file").read_text() == "in use"
    used.close()

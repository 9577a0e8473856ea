"""Directory trees that are made once and then shared by workers: what sandboxes see as their root.

A cache has, for each key, ``KEY/tree``, ``KEY/manifest`` and ``KEY.lock``. Who uses a tree holds its lock shared, who
makes or removes it exclusively, so the kernel lets go of it for who dies. A tree is made beside its place, as
``KEY.new``, and renamed: what a killed process leaves counts as nothing, and the next to make it removes it.

A tree is used only if nobody could have changed it but the user of this process and root. That is looked at every time:
owners and modes of all that is in it, of the cache, and of the directories on the way to it. Sizes and times
must be those that the manifest notes; else, after a crash for instance, the tree is made again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

UNUSED_KEPT_S = 3600.0
"""After so many seconds without use, a tree goes when another is made."""
LOCK_TIMEOUT_S = 30.0
_LOCK_RETRY_S = 0.02
_ATTEMPTS = 5
_FORMAT = 1
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ANY_EXECUTES = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


@dataclass(frozen=True, slots=True)
class Source:
    """A file of this machine, as it was when it was looked at.

    Attributes:
        path: where it is.
        target: where it goes, below the tree.
        size: in bytes.
        mtime_ns: when it was changed.
    """

    path: Path
    target: str
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path, target: str) -> Source:
        """Look at a file."""
        status = path.stat()
        return cls(path, target, status.st_size, status.st_mtime_ns)

    def read(self) -> tuple[bytes, bool]:
        """Give the content, and whether it may be executed.

        Raises:
            OSError: it is not any more what was looked at.
        """
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns) or len(content) != self.size:
            raise OSError(errno.ESTALE, f"{self.path} was changed just now; try again")
        return content, bool(status.st_mode & _ANY_EXECUTES)


FilesOf = Callable[[Source, bytes], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a tree is made of. Trees of one key are the same.

    Attributes:
        about: what the key depends on besides.
        sources: files of this machine.
        texts: further files.
        directories: that are to be there, even empty.
        more: finds further sources, if the tree is to be made; which ones is noted.
        files_of: what becomes of a source and its content: files with content.
    """

    about: str
    sources: Sequence[Source]
    texts: Mapping[str, bytes]
    directories: Sequence[str]
    more: Callable[[], Sequence[Source]]
    files_of: FilesOf

    def key(self) -> str:
        """Give the name of the tree."""
        told = [
            _FORMAT,
            self.about,
            [(str(one.path), one.target, one.size, one.mtime_ns) for one in self.sources],
            sorted((target, text.hex()) for target, text in self.texts.items()),
            sorted(self.directories),
        ]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


class Tree:
    """A tree in use, until it is closed."""

    __slots__ = ("_lock", "path")

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """Let the tree be removed when its turn comes; again does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class TreeCache:
    """Trees in a directory. Safe to use from any number of processes at once.

    Args:
        directory: made if absent.
        trust_parents: do not look who may write to the directories around it.

    Raises:
        OSError: it cannot be made, programs in it could not be executed, or others may write there.
    """

    def __init__(self, directory: Path, *, trust_parents: bool = False) -> None:
        if not trust_parents:
            _require_own_way(directory)  # first: nothing is to be made in somebody else's directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory.resolve()
        _require_own(self._directory.lstat(), str(self._directory))
        if not trust_parents:
            _require_own_way(self._directory)
        if os.statvfs(self._directory).f_flag & os.ST_NOEXEC:
            raise OSError(errno.EACCES, f"{self._directory} is mounted noexec")

    def take(self, recipe: Recipe) -> Tree:
        """Give the tree of a recipe; make it if it is not there, or not what it was.

        Raises:
            OSError: that cannot be done.
        """
        key = recipe.key()
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        for _ in range(_ATTEMPTS):
            lock = os.open(self._lock_of(key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                _lock(lock, fcntl.LOCK_SH, deadline)
                if self._is_there(lock, key):
                    if self._is_whole(key):
                        os.utime(lock)
                        lock, taken = -1, lock
                        return Tree(self._directory / key / "tree", taken)
                    _lock(lock, fcntl.LOCK_EX, deadline)
                    if self._is_there(lock, key) and not self._is_whole(key):
                        self._make(key, recipe)
                        self._remove_unused()
            finally:
                if lock >= 0:  # from exclusive to shared there is no way without a gap: so the next attempt looks again
                    os.close(lock)
        raise OSError(errno.EBUSY, f"{self._directory / key} is changed all the time")

    def _lock_of(self, key: str) -> Path:
        return self._directory / f"{key}.lock"

    def _is_there(self, lock: int, key: str) -> bool:
        """Whether what is locked is still the file of that name, and not one that was removed meanwhile."""
        try:
            return os.path.samestat(os.fstat(lock), self._lock_of(key).lstat())
        except FileNotFoundError:
            return False

    def _make(self, key: str, recipe: Recipe) -> None:
        new, place = self._directory / f"{key}.new", self._directory / key
        for leftover in (new, place):
            if leftover.exists():
                shutil.rmtree(leftover)
        try:
            self._fill(new, recipe)
            new.rename(place)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)  # on a full disk, for one
            raise

    def _fill(self, new: Path, recipe: Recipe) -> None:
        more = recipe.more()
        made = _Maker(new / "tree")
        for directory in recipe.directories:
            made.directory(directory)
        for target, text in recipe.texts.items():
            made.file(target, text, executable=False)
        for source in (*recipe.sources, *more):
            content, executable = source.read()
            for target, part in recipe.files_of(source, content):
                made.file(target, part, executable=executable)
        noted = {"files": made.files, "more": [(str(one.path), one.size, one.mtime_ns) for one in more]}
        (new / "manifest").write_text(json.dumps(noted))
        (new / "manifest").chmod(0o644)
        new.chmod(0o755)

    def _is_whole(self, key: str) -> bool:
        """Whether the tree is there as it was made, by whom may make it, and of what this machine still has."""
        place = self._directory / key
        try:
            if not all(map(_is_own, (place.lstat(), (place / "manifest").lstat()))):
                return False
            noted = json.loads((place / "manifest").read_bytes())
            if any(_size_and_time(Path(path).stat()) != [size, mtime] for path, size, mtime in noted["more"]):
                return False
            found = dict(_looked_at(str(place / "tree")))
            return bool(found == noted["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _remove_unused(self) -> None:
        """Remove the trees that nobody uses, nor has used lately. Nobody else's business fails by it."""
        for path in self._directory.glob("*.lock"):
            with contextlib.suppress(OSError), _opened(path) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                key = path.name.removesuffix(".lock")
                if self._is_there(lock, key) and time.time() - os.fstat(lock).st_mtime > UNUSED_KEPT_S:
                    shutil.rmtree(self._directory / key, ignore_errors=True)
                    shutil.rmtree(self._directory / f"{key}.new", ignore_errors=True)
                    path.unlink()


class _Maker:
    """Writes files that everybody may read, whatever the umask: sandboxes may be another user."""

    def __init__(self, top: Path) -> None:
        self.files: dict[str, list[int]] = {}
        self._top = top
        self._made: set[str] = set()
        top.mkdir(mode=0o700, parents=True)
        top.chmod(0o755)

    def directory(self, target: str) -> None:
        if target in self._made or not target:
            return
        self.directory(target.rpartition("/")[0])
        path = self._top / target
        path.mkdir()
        path.chmod(0o755)
        self._made.add(target)

    def file(self, target: str, content: bytes, *, executable: bool) -> None:
        self.directory(target.rpartition("/")[0])
        with (self._top / target).open("xb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o755 if executable else 0o644)
            self.files[target] = _size_and_time(os.fstat(file.fileno()))


def _looked_at(top: str) -> Iterator[tuple[str, list[int]]]:
    """Go through a tree; size and time of each file.

    Raises:
        OSError: something in it is no file and no directory, or others could have changed it.
    """
    unvisited = [""]
    _require_own(os.lstat(top), top)
    while unvisited:
        below = unvisited.pop()
        with os.scandir(f"{top}/{below}") as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                _require_own(status, entry.path)
                name = f"{below}{entry.name}"
                if stat.S_ISDIR(status.st_mode):
                    unvisited.append(f"{name}/")
                else:
                    yield name, _size_and_time(status)


def _size_and_time(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]


def _require_own(status: os.stat_result, path: str) -> None:
    if not _is_own(status):
        raise OSError(errno.EPERM, f"{path} could be changed by others")


def _is_own(status: os.stat_result) -> bool:
    """Whether only root and the user of this process may change a file or directory."""
    kind = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
    return kind and status.st_uid in (0, os.geteuid()) and not status.st_mode & _OTHERS_WRITE


def _require_own_way(directory: Path) -> None:
    """Check that nobody but root and the user of this process could put something else in the directory's place.

    Where others may make files but not rename or remove those of this user, as in ``/tmp``, they cannot.
    """
    for parent in directory.resolve().parents:
        with contextlib.suppress(FileNotFoundError):  # it is to be made in one that is looked at
            status = parent.lstat()
            if not _is_own(status) and not (status.st_mode & stat.S_ISVTX and status.st_uid in (0, os.geteuid())):
                raise OSError(errno.EPERM, f"{parent}, on the way to {directory}, could be changed by others")


def _lock(descriptor: int, operation: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the lock of the sandboxes' root was not to be had") from None
        time.sleep(_LOCK_RETRY_S)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

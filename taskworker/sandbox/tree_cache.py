"""A cache of directory trees that are made once and shared by workers: the root directories of sandboxes.

For each key, a cache has ``KEY/tree``, ``KEY/manifest`` and ``KEY.lock``. A process holds the lock shared while it uses
the tree, and exclusively while it makes or removes it; the kernel releases the lock of a process that dies. A tree is
made as ``KEY.new`` and then renamed, so that an unfinished tree is never used; the next process to make it removes the
remains.

A tree is only used if nobody but root and the user of this process could have changed it. Owners and modes of
everything in it, of the cache and of the directories above it are checked every time. Sizes and times must be those in
the manifest; otherwise, for instance after a crash, the tree is made again.
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
"""A tree that was unused for so many seconds is removed when another one is made."""
LOCK_TIMEOUT_S = 30.0
_LOCK_RETRY_S = 0.02
_ATTEMPTS = 5
_FORMAT = 1
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ANY_EXECUTES = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


@dataclass(frozen=True, slots=True)
class Source:
    """A file of this machine, with its size and time when it was inspected.

    Attributes:
        path: path of the file.
        target: its path in the tree.
        size: its size in bytes.
        mtime_ns: when it was last changed, in nanoseconds.
    """

    path: Path
    target: str
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: Path, target: str) -> Source:
        """Inspect a file."""
        status = path.stat()
        return cls(path, target, status.st_size, status.st_mtime_ns)

    def read(self) -> tuple[bytes, bool]:
        """Return the content, and whether the file is executable.

        Raises:
            OSError: the file cannot be read, or was changed since it was inspected.
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
    """What a tree is made of. Equal recipes have the same key and yield the same tree.

    Attributes:
        about: further text that the key depends on.
        sources: files of this machine.
        texts: further files: path in the tree and content.
        directories: directories to make even if they are empty.
        more: finds further sources when the tree is made; the manifest lists them.
        files_of: yields the files, with content, to make from a source and its content.
    """

    about: str
    sources: Sequence[Source]
    texts: Mapping[str, bytes]
    directories: Sequence[str]
    more: Callable[[], Sequence[Source]]
    files_of: FilesOf

    def key(self) -> str:
        """Return the key of the tree, a hash of the recipe without ``more``."""
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
        """Stop using the tree, so that it may be removed. Further calls do nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class TreeCache:
    """A cache of trees in a directory. Any number of processes may use it at the same time.

    Args:
        directory: directory of the cache; it is made if it does not exist.
        trust_parents: do not check who may write to the directories above it.

    Raises:
        OSError: the directory cannot be made, is mounted noexec, or could be changed by other users.
    """

    def __init__(self, directory: Path, *, trust_parents: bool = False) -> None:
        if not trust_parents:
            _require_own_way(directory)  # before mkdir: make nothing in a directory of another user
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory.resolve()
        _require_own(self._directory.lstat(), str(self._directory))
        if not trust_parents:
            _require_own_way(self._directory)
        if os.statvfs(self._directory).f_flag & os.ST_NOEXEC:
            raise OSError(errno.EACCES, f"{self._directory} is mounted noexec")

    def take(self, recipe: Recipe) -> Tree:
        """Return the tree of a recipe; make it if it does not exist or was changed.

        Raises:
            OSError: it cannot be made, or its lock was not free within `LOCK_TIMEOUT_S`.
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
                if lock >= 0:  # exclusive to shared is not atomic, so the next attempt checks again
                    os.close(lock)
        raise OSError(errno.EBUSY, f"{self._directory / key} keeps being changed")

    def _lock_of(self, key: str) -> Path:
        return self._directory / f"{key}.lock"

    def _is_there(self, lock: int, key: str) -> bool:
        """Whether the locked file still has its name, and was not removed meanwhile."""
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
            shutil.rmtree(new, ignore_errors=True)  # for example on a full disk
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
        """Whether tree and sources are unchanged since it was made, and no other user could have changed it."""
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
        """Remove the trees that nobody uses or has used lately. Ignores errors, so that `take` does not fail."""
        for path in self._directory.glob("*.lock"):
            with contextlib.suppress(OSError), _opened(path) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                key = path.name.removesuffix(".lock")
                if self._is_there(lock, key) and time.time() - os.fstat(lock).st_mtime > UNUSED_KEPT_S:
                    shutil.rmtree(self._directory / key, ignore_errors=True)
                    shutil.rmtree(self._directory / f"{key}.new", ignore_errors=True)
                    path.unlink()


class _Maker:
    """Writes files that every user may read, regardless of the umask, as sandboxes may run as another user."""

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
    """Walk a tree; yield path, size and time of each file.

    Raises:
        OSError: it contains something else than files and directories, or other users could have changed it.
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
    """Whether this is a file or directory that only root and the user of this process may change."""
    kind = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
    return kind and status.st_uid in (0, os.geteuid()) and not status.st_mode & _OTHERS_WRITE


def _require_own_way(directory: Path) -> None:
    """Check that only root and the user of this process could replace the directory or one of its parents.

    Parents in which others may make files, but not rename or remove those of this user, such as ``/tmp``, are fine.

    Raises:
        OSError: other users could replace it.
    """
    for parent in directory.resolve().parents:
        with contextlib.suppress(FileNotFoundError):  # it will be made in a parent that is checked
            status = parent.lstat()
            if not _is_own(status) and not (status.st_mode & stat.S_ISVTX and status.st_uid in (0, os.geteuid())):
                raise OSError(errno.EPERM, f"{parent}, on the way to {directory}, could be changed by others")


def _lock(descriptor: int, operation: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the lock of the sandboxes' root was not free in time") from None
        time.sleep(_LOCK_RETRY_S)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

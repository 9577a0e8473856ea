"""A file system whose calls fail with an error number for as long as a test wants."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from storage.errors import StoreUnavailable
from storage.limits import BytesLike
from storage.shards.filesystem import LocalFile, LocalFileSystem, Space
from storage.system.faults import Fault, fault_of
from storage.system.lmdb_env import Environment

CALLS = (
    "create", "open", "open_writable", "write_whole", "remove", "sync_directory", "names", "read_whole", "space",
    "database", "write", "read", "datasync", "truncate",
)  # fmt: skip


class FaultyDisk(LocalFileSystem):
    """See :class:`storage.shards.filesystem.FileSystem`.

    Attributes:
        failing: error number for each failing call; a key (call, name of a directory) limits it to that directory.
    """

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.only = ""  # name of the only directory with failures; empty: all
        self.left = -1  # how many more calls fail; negative: all
        self.bad_sectors: list[tuple[Path, int, int]] = []

    def fail(self, number: int, *calls: str, only: str = "", times: int = -1) -> None:
        """Let these calls fail from now on, or only the next few of them."""
        self.failing = dict.fromkeys(calls, number)
        self.only = only
        self.left = times

    def spoil(self, path: Path, start: int, stop: int) -> None:
        """Make these bytes of a file unreadable."""
        self.bad_sectors.append((path, start, stop))

    def heal(self) -> None:
        """Let all calls succeed again."""
        self.failing = {}
        self.bad_sectors = []

    def check(self, call: str, path: Path) -> None:
        number = self.failing.get(call)
        if number is not None and self.left and (not self.only or self.only in path.parts):
            self.left -= 1
            raise OSError(number, os.strerror(number), str(path))

    def create(self, path: Path) -> FaultyFile:
        self.check("create", path)
        super().create(path)
        return self._opened(path, writable=True)

    def open(self, path: Path, *, writable: bool) -> FaultyFile:
        self.check("open_writable" if writable else "open", path)
        return self._opened(path, writable=writable)

    def _opened(self, path: Path, *, writable: bool) -> FaultyFile:
        return FaultyFile(os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC), self, path)

    def write_whole(self, path: Path, content: bytes) -> None:
        self.check("write_whole", path)
        super().write_whole(path, content)

    def remove(self, path: Path) -> None:
        self.check("remove", path)
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self.check("sync_directory", path)
        super().sync_directory(path)

    def names(self, path: Path) -> list[str]:
        self.check("names", path)
        return super().names(path)

    def read_whole(self, path: Path) -> bytes:
        self.check("read_whole", path)
        return super().read_whole(path)

    def space(self, path: Path) -> Space:
        self.check("space", path)
        return super().space(path)

    def database(self, path: Path, databases: tuple[str, ...]) -> Environment:
        try:
            self.check("database", path)
        except OSError as error:
            if fault_of(error) is Fault.READ_ONLY:
                raise
            raise StoreUnavailable(str(error)) from error
        return super().database(path, databases)


class FaultyFile(LocalFile):
    """A file on a `FaultyDisk`."""

    __slots__ = ("_disk", "_path")

    def __init__(self, fd: int, disk: FaultyDisk, path: Path) -> None:
        super().__init__(fd)
        self._disk = disk
        self._path = path

    def write(self, buffers: Sequence[BytesLike], offset: int) -> None:
        self._disk.check("write", self._path)
        super().write(buffers, offset)

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> int:
        self._disk.check("read", self._path)
        stop = offset + sum(map(len, buffers))
        if any(path == self._path and offset < last and first < stop for path, first, last in self._disk.bad_sectors):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._path))
        return super().read_into(buffers, offset)

    def datasync(self) -> None:
        self._disk.check("datasync", self._path)
        super().datasync()

    def descriptor(self) -> int:
        return -1  # so that the flusher calls datasync

    def truncate(self, size: int) -> None:
        self._disk.check("truncate", self._path)
        super().truncate(size)

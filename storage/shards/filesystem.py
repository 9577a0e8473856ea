"""All disk access of volumes, in an interface small enough for crash tests to record and replay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from storage.errors import StoreFull
from storage.limits import BytesLike
from storage.system.faults import Fault, fault_of
from storage.system.lmdb_env import Environment
from storage.system.private_paths import make_root_directory, open_private

_IOV_MAX = 1024  # Linux's UIO_MAXIOV


class Space(NamedTuple):
    """Space on a file system, in bytes."""

    total: int
    free: int


class VolumeFile(Protocol):
    """An open segment file. It is closed when the last reference to it is dropped."""

    def write(self, buffers: Sequence[BytesLike], offset: int) -> None:
        """Write all buffers one after another from ``offset``. Raises StoreFull or OSError."""

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Read from ``offset`` into the buffers; return the number of bytes read, which may be less than they hold."""

    def datasync(self) -> None:
        """Make the content and the length durable (fdatasync)."""

    def descriptor(self) -> int:
        """Return the descriptor, so that several files can be flushed together; -1 if only datasync can flush it."""

    def drop_cache(self) -> None:
        """Make later reads come from the disk; pages not written yet stay cached.

        After a failed flush the kernel counts the pages as clean: they can still be read from the cache, but are
        not on the disk, and no later flush will write them.
        """

    def truncate(self, size: int) -> None:
        """Cut or extend the file to ``size`` bytes."""

    def size(self) -> int:
        """Return the length in bytes."""

    def removed(self) -> bool:
        """Whether the file has no name any more, because somebody else removed it."""


class FileSystem(Protocol):
    """The file system operations that a volume uses."""

    def make_directory(self, path: Path) -> None:
        """Create a directory and its parents if missing; the names of all of them are durable afterwards."""

    def create(self, path: Path) -> VolumeFile:
        """Create a new file for reading and writing; FileExistsError if there is one."""

    def open(self, path: Path, *, writable: bool) -> VolumeFile:
        """Open an existing file."""

    def write_whole(self, path: Path, content: bytes) -> None:
        """Atomically and durably create or replace a small file."""

    def remove(self, path: Path) -> None:
        """Remove a file's name."""

    def sync_directory(self, path: Path) -> None:
        """Make names created in or removed from a directory durable."""

    def names(self, path: Path) -> list[str]:
        """Return the names in a directory. Raises OSError if it is missing or cannot be listed."""

    def read_whole(self, path: Path) -> bytes:
        """Return the content of a small file."""

    def space(self, path: Path) -> Space:
        """Return the space on the file system of a directory."""

    def database(self, path: Path, databases: tuple[str, ...]) -> Environment:
        """Open the LMDB environment in a directory, only for reading if it cannot be written."""

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and everything in it."""


class LocalFile:
    """A :class:`VolumeFile` on the local file system."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, buffers: Sequence[BytesLike], offset: int) -> None:
        """See :class:`VolumeFile`."""
        try:
            for start in range(0, len(buffers), _IOV_MAX):
                offset += self._write_all(buffers[start : start + _IOV_MAX], offset)
        except OSError as error:
            raise_if_full(error)
            raise

    def _write_all(self, buffers: Sequence[BytesLike], offset: int) -> int:
        total = sum(map(len, buffers))
        written = os.pwritev(self._fd, buffers, offset)
        if written < total:
            rest = memoryview(b"".join(buffers))
            while written < total:
                written += os.pwrite(self._fd, rest[written:], offset + written)
        return total

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> int:
        """See :class:`VolumeFile`."""
        return os.preadv(self._fd, buffers, offset)

    def datasync(self) -> None:
        """See :class:`VolumeFile`."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise_if_full(error)
            raise

    def descriptor(self) -> int:
        """See :class:`VolumeFile`."""
        return self._fd

    def drop_cache(self) -> None:
        """See :class:`VolumeFile`. Dirty pages stay cached, see posix_fadvise(2)."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def truncate(self, size: int) -> None:
        """See :class:`VolumeFile`."""
        os.ftruncate(self._fd, size)

    def size(self) -> int:
        """See :class:`VolumeFile`."""
        return os.fstat(self._fd).st_size

    def removed(self) -> bool:
        """See :class:`VolumeFile`."""
        return os.fstat(self._fd).st_nlink == 0

    def __del__(self) -> None:
        # Readers hold a reference while they read, so a file dropped from the cache is closed after the last read.
        os.close(self._fd)


class LocalFileSystem:
    """The operating system's file system."""

    def make_directory(self, path: Path) -> None:
        """See :class:`FileSystem`."""
        make_root_directory(path)
        for above in path.absolute().parents:
            # Sync existing parents, too: a process that created them may have been killed before syncing them.
            try:
                self.sync_directory(above)
            except PermissionError:
                return  # not ours, so we have created nothing in it

    def create(self, path: Path) -> LocalFile:
        """See :class:`FileSystem`."""
        try:
            return LocalFile(open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        except OSError as error:
            raise_if_full(error)
            raise

    def open(self, path: Path, *, writable: bool) -> LocalFile:
        """See :class:`FileSystem`."""
        return LocalFile(open_private(path, os.O_RDWR if writable else os.O_RDONLY))

    def write_whole(self, path: Path, content: bytes) -> None:
        """See :class:`FileSystem`."""
        temporary = path.with_name(path.name + ".new")
        temporary.unlink(missing_ok=True)  # left by a crash, or by somebody who can write here
        fd = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.write(fd, content)
            os.fsync(fd)
        except OSError as error:
            raise_if_full(error)
            raise
        finally:
            os.close(fd)
        temporary.replace(path)
        self.sync_directory(path.parent)

    def remove(self, path: Path) -> None:
        """See :class:`FileSystem`."""
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        """See :class:`FileSystem`."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def names(self, path: Path) -> list[str]:
        """See :class:`FileSystem`."""
        return os.listdir(path)

    def read_whole(self, path: Path) -> bytes:
        """See :class:`FileSystem`."""
        return path.read_bytes()

    def space(self, path: Path) -> Space:
        """See :class:`FileSystem`."""
        status = os.statvfs(path)
        return Space(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    def database(self, path: Path, databases: tuple[str, ...]) -> Environment:
        """See :class:`FileSystem`."""
        return Environment(path, databases)

    def remove_tree(self, path: Path) -> None:
        """See :class:`FileSystem`."""
        shutil.rmtree(path)


def raise_if_full(error: OSError) -> None:
    """Raise StoreFull for the errors "no space", "quota exceeded" and "file too large"; return for all others."""
    if fault_of(error) is Fault.FULL:
        raise StoreFull(
            f"no space left ({error.strerror}); nothing of this write is kept: delete files and run collect, "
            "or give the store more room"
        ) from error

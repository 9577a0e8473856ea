"""Atomic writes of local files: a file is written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from storage.limits import BytesLike


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A temporary file to write, which replaces ``path`` if the block succeeds, and is removed if it fails.

    Follows links, keeps the mode of an existing file, and writes directly to anything that is not a regular
    file (a device, a pipe). With ``durable``, the file survives a power cut once the block has ended.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb", buffering=0) as direct:
            yield direct
        return
    descriptor, name = tempfile.mkstemp(prefix=".taskworker-", suffix=".part", dir=target.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w+b", buffering=0) as file:
            yield file
            os.fchmod(file.fileno(), _mode_for(target))
            if durable:
                os.fsync(file.fileno())
        part.replace(target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # name the target, not the temporary file
        raise
    if durable:
        sync_directory(target.parent)


def _mode_for(target: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def sync_directory(directory: Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(file: BinaryIO, data: BytesLike) -> None:
    """Write all of ``data``: raw files may write only a part, and other file objects may not report how much."""
    view = memoryview(data)
    while view:
        written = cast("int | None", file.write(view))
        view = view[len(view) if written is None else written :]


def copy_into(source: Path, file: BinaryIO) -> None:
    """Copy all of ``source`` into an empty file; share its blocks if the file system supports that."""
    with source.open("rb", buffering=0) as original:
        remaining = os.fstat(original.fileno()).st_size
        with contextlib.suppress(OSError):  # unsupported by some file systems, and between two of them
            while remaining:
                copied = os.copy_file_range(original.fileno(), file.fileno(), remaining)
                if copied == 0:
                    return
                remaining -= copied
        copy_stream(original, file)


def copy_stream(source: BinaryIO, file: BinaryIO) -> None:
    """Copy the rest of ``source`` into ``file``."""
    while piece := source.read(1 << 20):
        write_all(file, piece)


class LocalFile:
    """A local file that will be updated, and its state when this object was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _identity(path)

    @contextlib.contextmanager
    def replaced(self) -> Iterator[BinaryIO]:
        """A temporary file that durably replaces this one if the block succeeds.

        Raises:
            ConflictError: somebody wrote to the file meanwhile; it is left as it is.
        """
        with replacing(self._path, durable=True) as file:
            yield file
            if _identity(self._path) != self._seen:
                from storage.errors import ConflictError  # late: most commands do not need it

                raise ConflictError(
                    f"{self._path} was changed while it was being synchronized, and is left as it is; "
                    "synchronize again",
                    head="",
                )

    def patch(self, size: int, pieces: Iterable[tuple[int, BytesLike]]) -> None:
        """Replace the file with a copy of ``size`` bytes that has ``pieces``, (offset, bytes), written over it.

        Raises:
            ConflictError: somebody wrote to the file meanwhile; it is left as it is.
        """
        with self.replaced() as copy:
            copy_into(self._path, copy)
            copy.truncate(size)
            for offset, piece in pieces:
                copy.seek(offset)
                write_all(copy, piece)


def _identity(path: Path) -> tuple[int, int, int]:
    looks = path.stat()
    return looks.st_ino, looks.st_size, looks.st_mtime_ns

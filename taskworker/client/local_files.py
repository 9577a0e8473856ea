"""Local files that are whole or not there: written beside their place, then renamed into it."""

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
    """A file to write that takes ``path``'s place when the block ends well, and vanishes when it does not.

    Links are followed, the mode of a file already there is kept, and what is no regular file (a device,
    a pipe) is written directly. ``durable`` makes it survive a power cut once the block has ended.
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
            error.filename = str(path)  # a full disk is the disk of this file
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
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(file: BinaryIO, data: BytesLike) -> None:
    """Write all of ``data``: raw files may take less than they are given, files of other makes may not tell."""
    view = memoryview(data)
    while view:
        written = cast("int | None", file.write(view))
        view = view[len(view) if written is None else written :]


def copy_into(source: Path, file: BinaryIO) -> None:
    """Copy all of ``source`` into an empty file, shared rather than copied where the file system can."""
    with source.open("rb", buffering=0) as original:
        remaining = os.fstat(original.fileno()).st_size
        with contextlib.suppress(OSError):  # not on every file system, nor across two
            while remaining:
                copied = os.copy_file_range(original.fileno(), file.fileno(), remaining)
                if copied == 0:
                    return
                remaining -= copied
        copy_stream(original, file)


def copy_stream(source: BinaryIO, file: BinaryIO) -> None:
    """Copy the rest of ``source``."""
    while piece := source.read(1 << 20):
        write_all(file, piece)


class LocalFile:
    """A local file that is to be brought up to date, as it looks when this is made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _identity(path)

    @contextlib.contextmanager
    def replaced(self) -> Iterator[BinaryIO]:
        """A file that takes this one's place when the block ends well, durably.

        Raises:
            ConflictError: somebody wrote to the file meanwhile; it is left as it is.
        """
        with replacing(self._path, durable=True) as file:
            yield file
            if _identity(self._path) != self._seen:
                from storage.errors import ConflictError  # commands that need none do not load it

                raise ConflictError(
                    f"{self._path} was written to while it was brought up to date, and left as it is; "
                    "synchronize again",
                    head="",
                )

    def patch(self, size: int, pieces: Iterable[tuple[int, BytesLike]]) -> None:
        """Replace the file by a copy of ``size`` bytes with ``pieces``, (offset, bytes), in their places.

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

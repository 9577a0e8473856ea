"""Atomic writes of local files: a file is written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from storage.limits import BytesLike

_NEW_MODE = 0o666  # less the umask: a fetched file is like any other file that its user makes
_LINKS_MAX = 40  # as many as Linux follows


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A temporary file to write, which replaces ``path`` if the block succeeds, and is removed if it fails.

    Follows symbolic links of this process's user and of root, keeps the mode of an existing file, and writes directly
    to anything that is not a regular file (a device, a pipe). With ``durable``, the file survives a power cut once the
    block has ended.

    Raises:
        NotPrivate: a symbolic link or a pipe belongs to another user, who would get what is written, or have it
            written to another place.
    """
    from storage.system.private_paths import FILE_MODE  # most commands need none of it

    target = _target_of(path)
    if target is None:
        with open(path, "wb", buffering=0) as direct:  # noqa: PTH123 - mypy knows that this one is unbuffered
            yield direct
        return
    mode = _mode_of(target)
    part = target.with_name(f".taskworker-{secrets.token_hex(8)}.part")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(part, flags, _NEW_MODE if mode is None else FILE_MODE)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(descriptor, "w+b", buffering=0) as file:
            yield file
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        part.replace(target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # name the target, not the temporary file
        raise
    if durable:
        from storage.system.directories import sync_directory

        sync_directory(target.parent)


def _target_of(path: Path) -> Path | None:
    """The regular file that a path leads to, which may not exist; None: it leads to something else."""
    from storage.system.private_paths import NotPrivate, require_own_link

    target = path
    for _ in range(_LINKS_MAX):
        for above in reversed(target.absolute().parents):
            with contextlib.suppress(FileNotFoundError):
                require_own_link(above)
        try:
            require_own_link(target)
            if not target.is_symlink():
                break
        except FileNotFoundError:
            break
        target = target.parent / target.readlink()
    try:
        found = path.stat()
    except FileNotFoundError:
        return target
    if stat.S_ISFIFO(found.st_mode) and found.st_uid not in (os.geteuid(), 0):
        raise NotPrivate(f"{path} is a pipe of user {found.st_uid}, who would get what is written to it")
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return target if stat.S_ISREG(found.st_mode) else None


def _mode_of(target: Path) -> int | None:
    """The permissions of a file; None: it does not exist, and the umask decides."""
    try:
        return stat.S_IMODE(target.stat().st_mode) & 0o777
    except FileNotFoundError:
        return None


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

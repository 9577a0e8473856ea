"""Local files that are whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO


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


def write_all(file: BinaryIO, data: bytes | bytearray | memoryview) -> None:
    """Write all of ``data``; an unbuffered file may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


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


def chunks_of(file: FileIO, chunk_size: int) -> Iterator[memoryview]:
    """The file's chunks, each valid until the next is asked for."""
    buffer = memoryview(bytearray(chunk_size))
    while filled := _fill(file, buffer):
        yield buffer[:filled]


def _fill(file: FileIO, buffer: memoryview) -> int:
    filled = 0
    while filled < len(buffer) and (count := file.readinto(buffer[filled:])):
        filled += count
    return filled

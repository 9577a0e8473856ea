"""Sources: everything that a user may push, fed into an upload with as few copies as possible."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from storage.errors import InvalidArgument
from storage.limits import BytesLike, as_int, shown

Source = BytesLike | str | os.PathLike[str] | BinaryIO | Iterable[BytesLike]
"""Bytes, a path, a binary file object, or an iterable of bytes."""

_READ_BYTES = 1 << 20
NON_BLOCKING = "the file is non-blocking and has no data now, though it has not ended; make it blocking"


class Sink(Protocol):
    """A receiver of bytes, such as an upload."""

    def write(self, data: BytesLike) -> None:
        """Append bytes."""

    def write_file(self, fd: int, size: int) -> None:
        """Append the first ``size`` bytes of a regular file."""

    def free_space(self) -> memoryview:
        """Return memory into which to read the next bytes."""

    def filled(self, count: int) -> None:
        """Note that ``count`` bytes were read into the memory from :meth:`free_space`."""


def source_size(source: Source) -> int:
    """Return the size of a source in bytes; 0 if it is not known beforehand."""
    if isinstance(source, bytes | bytearray | memoryview):
        return memoryview(source).nbytes
    if isinstance(source, str | os.PathLike):
        status = Path(source).stat()
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def opened_path(path: str | os.PathLike[str], buffering: int = 0) -> BinaryIO:
    """Open a file for reading; ``buffering`` is that of ``open``.

    Raises:
        InvalidArgument: no file can have this path.
        OSError: it cannot be opened.
    """
    try:
        return Path(path).open("rb", buffering=buffering)
    except ValueError as error:  # it has a NUL character, or one that is no character at all
        raise InvalidArgument(f"no file can have the path {str(path)[:80]!a}: {error}") from None


def feed(source: Source, sink: Sink, *, in_order: bool) -> None:
    """Put all of ``source`` into ``sink``.

    Args:
        source: the source to read.
        sink: where to put the bytes.
        in_order: whether the bytes must pass in order, because they are hashed as a whole.

    Raises:
        InvalidArgument: this is not a source.
        OSError: the source cannot be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        if isinstance(source, memoryview) and not source.c_contiguous:
            source = source.tobytes()
        sink.write(source)
    elif isinstance(source, str | os.PathLike):
        _feed_path(Path(source), sink, in_order=in_order)
    elif hasattr(source, "readinto"):
        _feed_readinto(cast(BinaryIO, source), sink)
    elif hasattr(source, "read"):
        _feed_read(cast(BinaryIO, source), sink)
    elif isinstance(source, Iterable):
        for piece in iterated(source):
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise InvalidArgument(f"the iterable gave {type(piece).__name__}, not bytes")
            sink.write(piece)
    else:
        raise InvalidArgument(f"cannot push a {type(source).__name__}; give bytes, a path, a file or an iterable")


def beginning(source: Source, most: int) -> tuple[BytesLike, Source | None]:
    """Read the beginning of a source.

    Args:
        source: the source to read.
        most: how many bytes to read at most.

    Returns:
        All bytes and None, if there are not more than ``most`` bytes and they can be read at once. Otherwise some or
        no bytes, and a source of the rest.

    Raises:
        InvalidArgument: this is not a source.
        OSError: the source cannot be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        if memoryview(source).nbytes > most:
            return b"", source
        return bytes(source), None  # a copy, unless it is bytes, as the caller may change the others
    if isinstance(source, str | os.PathLike):
        with opened_path(source) as stream:
            if os.fstat(stream.fileno()).st_size > most:
                return b"", source
            data = _read_up_to(stream, most + 1)  # files in /proc report a size of 0
            return (data, None) if len(data) <= most else (b"", source)
    if hasattr(source, "read"):
        data = _read_up_to(cast(BinaryIO, source), most + 1)
        return data, (None if len(data) <= most else source)
    return b"", source


def _read_up_to(stream: BinaryIO, most: int) -> bytes:
    """Read ``most`` bytes, or fewer if the stream ends before."""
    pieces: list[BytesLike] = []
    room = most
    while room and (piece := stream.read(room)):
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise InvalidArgument("the file is open in text mode; open it with mode 'rb'")
        check_filled(len(piece), room)
        pieces.append(piece)
        room -= len(piece)
    if room and piece is None:
        raise InvalidArgument(NON_BLOCKING)
    return b"".join(pieces)


def iterated(source: Iterable[BytesLike]) -> Iterator[BytesLike]:
    """Return an iterator over a source.

    Raises:
        InvalidArgument: the source cannot be iterated.
    """
    try:
        return iter(source)
    except TypeError as error:  # a zero-dimensional array, for example, looks iterable but is not
        raise InvalidArgument(f"cannot push a {type(source).__name__}: {error}") from None


def _feed_path(path: Path, sink: Sink, *, in_order: bool) -> None:
    with opened_path(path) as stream:
        status = os.fstat(stream.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size > _READ_BYTES and not in_order:
            sink.write_file(stream.fileno(), status.st_size)
        else:
            _feed_readinto(stream, sink)


def _feed_readinto(stream: BinaryIO, sink: Sink) -> None:
    while True:
        count = stream.readinto(sink.free_space())  # type: ignore[attr-defined]
        if count is None:
            raise InvalidArgument(NON_BLOCKING)
        if count == 0:
            return
        sink.filled(count)


def read_exactly(fd: int, offset: int, target: memoryview) -> None:
    """Fill memory from a position of a regular file.

    Raises:
        InvalidArgument: the file ends before.
    """
    got = 0
    while got < len(target):
        count = os.preadv(fd, [target[got:]], offset + got)
        if count == 0:
            raise InvalidArgument(f"the file became shorter while it was read (at byte {offset + got}); push it again")
        got += count


def check_filled(count: int, room: int) -> int:
    """Return the number of bytes that a reader reports, if it is plausible for a buffer with this much room.

    Raises:
        InvalidArgument: it is not.
    """
    count = as_int(count, "the number of bytes read")
    if not 0 <= count <= room:
        raise InvalidArgument(f"a reader reported {shown(count)} bytes read into a buffer of {room}")
    return count


def _feed_read(stream: BinaryIO, sink: Sink) -> None:
    while piece := stream.read(_READ_BYTES):
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise InvalidArgument("the file is open in text mode; open it with mode 'rb'")
        sink.write(piece)
    if piece is None:
        raise InvalidArgument(NON_BLOCKING)

"""Sources of pushes: bytes, paths, files and iterables, read in blocks of at most 1 MiB."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOBase
from itertools import chain
from typing import BinaryIO, cast

from storage.errors import InvalidArgument
from storage.limits import BytesLike
from storage.write.sources import NON_BLOCKING, iterated, opened_path
from taskworker.rpc.limits import KIB, PUSH_DATA_BYTES

Pushable = BytesLike | str | os.PathLike[str] | BinaryIO | Iterable[BytesLike]


class SeekableSource:
    """Content of known size that can be read at any position, repeatedly."""

    def __init__(self, content: BytesLike | BinaryIO) -> None:
        """Wrap bytes, or a seekable file from its current position to its end."""
        if isinstance(content, bytes | bytearray | memoryview):
            self._view: memoryview | None = _bytes_of(content)
            self.size = self._view.nbytes
            return
        self._view = None
        self._file = content
        self._start = content.tell()
        self.size = content.seek(0, os.SEEK_END) - self._start

    def read(self, offset: int, length: int) -> BytesLike:
        """Exactly ``length`` bytes from ``offset``.

        Raises:
            InvalidArgument: the content has become shorter.
        """
        if self._view is not None:
            return self._view[offset : offset + length]
        self._file.seek(self._start + offset)
        data = _read(self._file, length)
        while len(data) < length:  # raw files may return less than asked for
            more = _read(self._file, length - len(data))
            if not more:
                raise InvalidArgument("the source became shorter while it was read; try again when nobody writes to it")
            data = b"".join((data, more))
        return data

    def blocks(self, offset: int = 0) -> Iterator[BytesLike]:
        """The content from ``offset`` to the end."""
        while offset < self.size:
            length = min(PUSH_DATA_BYTES, self.size - offset)
            yield self.read(offset, length)
            offset += length


class StreamSource:
    """Content of unknown size that can be read only once."""

    def __init__(self, pieces: Iterator[BytesLike]) -> None:
        self._pieces = pieces

    def blocks(self) -> Iterator[BytesLike]:
        """The content in blocks: small pieces are joined, and large ones split."""
        for pieces in self.gathered():
            yield pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def gathered(self) -> Iterator[list[BytesLike]]:
        """The content in blocks, each as the pieces that it consists of; small ones are joined."""
        gathered: list[BytesLike] = []
        room = PUSH_DATA_BYTES
        for piece in self._pieces:
            view = _bytes_of(piece)
            while view:
                part, view = (view, view[:0]) if len(view) <= room else (view[:room], view[room:])
                room -= len(part)
                if len(part) >= _JOINED_BYTES:
                    # Memory that the source may use again for the next piece is copied, if it is needed then.
                    gathered.append(part if isinstance(part.obj, bytes) or not room else bytes(part))
                elif gathered and isinstance(gathered[-1], bytearray):
                    gathered[-1] += part
                else:
                    gathered.append(bytearray(part))
                if not room:
                    yield gathered
                    gathered, room = [], PUSH_DATA_BYTES
        if gathered:
            yield gathered


_JOINED_BYTES = 16 * KIB
"""A piece of less is copied rather than kept: a thousand pieces cost more than a copy of them."""

Source = SeekableSource | StreamSource


@contextmanager
def opened(content: Pushable) -> Iterator[Source]:
    """Open ``content`` as a source; a file that was opened here is closed at the end.

    Raises:
        InvalidArgument: it cannot be read as bytes, or no file can have the path.
        OSError: a path cannot be opened.
    """
    if isinstance(content, str | os.PathLike):
        with opened_path(content, -1) as file:
            yield _of_path(file)
    elif isinstance(content, bytes | bytearray | memoryview):
        yield SeekableSource(content)
    elif _gives_text(content):
        raise InvalidArgument("the source gives text, not bytes; open files in binary mode")
    elif hasattr(content, "read"):
        stream = cast(BinaryIO, content)
        seekable = getattr(stream, "seekable", None)
        yield SeekableSource(stream) if seekable and seekable() else StreamSource(_pieces(stream))
    elif isinstance(content, Iterable):
        yield StreamSource(iterated(content))
    else:
        raise InvalidArgument(
            f"cannot push a {type(content).__name__}; give bytes, a path, a binary file or an iterable of bytes"
        )


@contextmanager
def opened_seekable(content: BytesLike | str | os.PathLike[str] | BinaryIO) -> Iterator[SeekableSource]:
    """Open ``content`` as a source that can be read at any position.

    Raises:
        InvalidArgument: it can be read only once.
    """
    with opened(content) as source:
        if isinstance(source, StreamSource):
            raise InvalidArgument("differences need content that can be read anywhere; give a regular file, or push it")
        yield source


def _gives_text(content: object) -> bool:
    return isinstance(content, TextIOBase)


def _bytes_of(piece: BytesLike) -> memoryview:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise InvalidArgument(f"the source gave {type(piece).__name__}, not bytes; open files in binary mode")
    view = memoryview(piece)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _read(file: BinaryIO, most: int) -> BytesLike:
    data = file.read(most)
    if data is None:
        raise InvalidArgument(NON_BLOCKING)
    if _bytes_of(data).nbytes > most:
        raise InvalidArgument(f"the file gave {_bytes_of(data).nbytes} bytes when asked for at most {most}")
    return data


def _of_path(file: BinaryIO) -> Source:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        return StreamSource(_pieces(file))
    if status.st_size > PUSH_DATA_BYTES:
        return SeekableSource(file)
    # Files in /proc report a size of 0, and files in /sys one of 4096, whatever they contain. So the size of a small
    # file is found by reading it.
    first = b"".join(_up_to(file, PUSH_DATA_BYTES + 1))
    if len(first) <= PUSH_DATA_BYTES:
        return SeekableSource(first)
    return StreamSource(chain((first,), _pieces(file)))


def _up_to(file: BinaryIO, count: int) -> Iterator[BytesLike]:
    while count and (piece := _read(file, count)):
        yield piece
        count -= len(piece)


def _pieces(file: BinaryIO) -> Iterator[BytesLike]:
    while piece := _read(file, PUSH_DATA_BYTES):
        yield piece

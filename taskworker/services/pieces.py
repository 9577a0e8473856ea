"""The bytes of a file in pieces of the size of a message."""

from __future__ import annotations

from collections.abc import Iterator

from storage import FileReader
from taskworker.rpc.limits import GET_DATA_BYTES

GetPieces = list[memoryview]
"""The data of one message. The views are valid until the next message is asked for."""


def pieces_of(reader: FileReader, start: int, stop: int) -> Iterator[GetPieces]:
    """The bytes from ``start`` to ``stop`` in messages: small chunks are joined, and large ones split."""
    gathered: list[memoryview] = []
    room = GET_DATA_BYTES
    # A large chunk is sent before the next one is requested, so its buffer can be reused.
    recycled = reader.version.chunk_size >= GET_DATA_BYTES
    for chunk in reader.iter_chunks(start, stop, recycled=recycled):
        while chunk:
            piece, chunk = chunk[:room], chunk[room:]
            gathered.append(piece)
            room -= len(piece)
            if not room or (recycled and not chunk):
                yield gathered
                gathered, room = [], GET_DATA_BYTES
    if gathered:
        yield gathered

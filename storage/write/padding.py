"""Zeros after the content of a chunk, up to k whole shards."""

from __future__ import annotations

from storage.limits import BytesLike


def padded(data: BytesLike, k: int) -> BytesLike:
    """Return data with zeros up to k whole shards; the data itself if it needs none."""
    rest = -len(data) % k
    return bytes(data) + bytes(rest) if rest else data


def padded_in_place(buffer: bytearray, length: int, k: int) -> memoryview:
    """Return the first k whole shards of a buffer, with zeros after the first ``length`` bytes."""
    whole = length + -length % k
    if whole > length:
        buffer[length:whole] = bytes(whole - length)
    return memoryview(buffer)[:whole]

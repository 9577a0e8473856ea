"""Blobs, which are named by their content, and the indexes that say in which container each of them lies."""

from __future__ import annotations

import operator
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta

from taskworker.folders.problems import FolderDamaged

BLOB_ID_BYTES = 32
CONTAINER_BYTES = 12
"""Bytes of a container's name, which are random: no two are ever the same."""
CONTAINERS_MAX = 1 << 24
INDEX_BLOBS_MAX = 1 << 20
"""Blobs in one index, which is held in memory as a whole."""

_PLACE = struct.Struct(">IQQ")  # container, offset, length
_SIZE_MAX = 1 << 60
_CHECKED = 4096  # ids whose order is checked at once
_BUCKET_BITS = 6  # ids that are looked through at once to find one


def blob_id(data: bytes) -> bytes:
    """The name of a blob: its BLAKE3."""
    return blake3(data).digest()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a blob lies.

    Attributes:
        container: name of the container.
        offset: where it begins there.
        length: its bytes.
    """

    container: bytes
    offset: int
    length: int


class IndexDocument(msgspec.Struct, frozen=True, array_like=True):
    """An index as it is stored.

    Attributes:
        format: number of this form.
        containers: their names.
        ids: ids of blobs, in order, one after the other.
        places: where each of them lies: number of the container in 4 bytes, offset and length in 8 bytes each.
    """

    format: Annotated[int, Meta(ge=1, le=1)]
    containers: Annotated[
        tuple[Annotated[bytes, Meta(min_length=CONTAINER_BYTES, max_length=CONTAINER_BYTES)], ...],
        Meta(max_length=CONTAINERS_MAX),
    ]
    ids: Annotated[bytes, Meta(max_length=INDEX_BLOBS_MAX * BLOB_ID_BYTES)]
    places: Annotated[bytes, Meta(max_length=INDEX_BLOBS_MAX * _PLACE.size)]


_decoder = msgspec.msgpack.Decoder(IndexDocument)


class Index:
    """Where some blobs lie, in about 55 bytes for each.

    Args:
        document: the index as it is stored; its parts belong together.
    """

    def __init__(self, document: IndexDocument) -> None:
        self.containers = document.containers
        self._ids = document.ids
        self._places = document.places
        count = len(self)
        bits = max(0, count.bit_length() - _BUCKET_BITS)
        self._shift = 32 - bits
        firsts = [(bucket << self._shift).to_bytes(4) for bucket in range(1, 1 << bits)]
        self._starts = array("I", [0, *(bisect_left(self, first) for first in firsts), count])
        """Where the ids begin whose first bits are 0, 1 and so on: ids are hashes, so that there are some of each."""

    def __len__(self) -> int:
        return len(self._ids) // BLOB_ID_BYTES

    def __getitem__(self, position: int) -> bytes:
        """The id of a blob."""
        return self._ids[position * BLOB_ID_BYTES : (position + 1) * BLOB_ID_BYTES]

    def __iter__(self) -> Iterator[bytes]:
        """The ids of all blobs, in order."""
        return map(self.__getitem__, range(len(self)))

    def place_at(self, position: int) -> Place:
        """Where a blob lies."""
        container, offset, length = _PLACE.unpack_from(self._places, position * _PLACE.size)
        return Place(self.containers[container], offset, length)

    def position_of(self, wanted: bytes) -> int | None:
        """The position of a blob in this index; None if it is not there."""
        bucket = int.from_bytes(wanted[:4]) >> self._shift
        start, stop = self._starts[bucket] * BLOB_ID_BYTES, self._starts[bucket + 1] * BLOB_ID_BYTES
        while (found := self._ids.find(wanted, start, stop)) % BLOB_ID_BYTES and found >= 0:
            start = found + 1  # the end of one id and the beginning of the next: not by chance
        return found // BLOB_ID_BYTES if found >= 0 else None


def encode_index(blobs: Iterable[tuple[bytes, Place]]) -> bytes:
    """An index of these blobs as bytes."""
    ordered = sorted(blobs, key=lambda each: each[0])
    numbers: dict[bytes, int] = {}
    places = bytearray()
    for _, place in ordered:
        number = numbers.setdefault(place.container, len(numbers))
        places += _PLACE.pack(number, place.offset, place.length)
    ids = b"".join(name for name, _ in ordered)
    return msgspec.msgpack.encode(IndexDocument(1, tuple(numbers), ids, bytes(places)))


def decode_index(data: bytes) -> Index:
    """An index from bytes.

    Raises:
        FolderDamaged: they are not one.
    """
    try:
        document = _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FolderDamaged(f"an index of the folder is not one that this release wrote: {error}") from None
    count = len(document.ids) // BLOB_ID_BYTES
    if len(document.ids) % BLOB_ID_BYTES or len(document.places) != count * _PLACE.size:
        raise FolderDamaged("an index of the folder has parts of different lengths")
    index = Index(document)
    places = document.places
    if not all(_is_ordered(index, start) for start in range(0, count, _CHECKED)):
        raise FolderDamaged("an index of the folder is out of order")
    # Bytes of the same significance are compared at once, as there may be a million of places.
    numbers = zip(*(places[byte :: _PLACE.size] for byte in range(4)), strict=True)
    last = int.from_bytes(bytes(max(numbers, default=b"")))
    highest = max(places[4 :: _PLACE.size] + places[12 :: _PLACE.size], default=0)
    if count and (last >= len(document.containers) or highest >= _SIZE_MAX >> 56):
        raise FolderDamaged("an index of the folder names what is not there")
    return index


def _is_ordered(index: Index, start: int) -> bool:
    """Whether each of some ids is below the next one."""
    ids = list(map(index.__getitem__, range(start, min(start + _CHECKED + 1, len(index)))))
    return all(map(operator.lt, ids, ids[1:]))


def split_indexes(blobs: Sequence[tuple[bytes, Place]]) -> Iterator[bytes]:
    """Indexes of any number of blobs."""
    for start in range(0, len(blobs), INDEX_BLOBS_MAX):
        yield encode_index(blobs[start : start + INDEX_BLOBS_MAX])

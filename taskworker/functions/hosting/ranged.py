"""Turns a write into a range of a file into a diff of the file's chunks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from storage import Version
from storage.diff.manifest_diff import ManifestDiff, Patch
from storage.errors import InvalidArgument
from storage.formats.manifest import object_id
from storage.limits import DIFF_PATCHES_MAX, FILE_SIZE_MAX


def diff_of_write(head: Version, source: BinaryIO, offset: int, read: Callable[[int, int], bytes]) -> ManifestDiff:
    """The diff of writing all of ``source`` at ``offset`` into a version.

    Reads at most the chunks at both ends of the range, if the range covers only a part of them.

    Args:
        head: the version.
        source: seekable; read from its beginning.
        offset: position in the file, at most its size.
        read: reads the version: takes offset and length.

    Raises:
        InvalidArgument: the offset is past the end, or the result or the diff is too large.
    """
    length = source.seek(0, os.SEEK_END)
    end = offset + length
    if not 0 <= offset <= head.size or end > FILE_SIZE_MAX:
        raise InvalidArgument(
            f"{length:,} bytes cannot be written at {offset:,} into a file of {head.size:,}: a write begins at most at "
            f"the file's end, and ends at most at {FILE_SIZE_MAX:,}"
        )
    new_size, chunk = max(head.size, end), head.chunk_size
    indexes = range(offset // chunk, -(-end // chunk)) if length else range(0)
    if len(indexes) > DIFF_PATCHES_MAX:
        raise InvalidArgument(f"a write touches at most {DIFF_PATCHES_MAX:,} chunks; push the file instead")
    source.seek(0)
    patches = []
    for index in indexes:
        begin, stop = index * chunk, min((index + 1) * chunk, new_size)
        from_, to = max(begin, offset), min(stop, end)
        before = read(begin, from_ - begin) if from_ > begin else b""
        after = read(to, stop - to) if stop > to else b""
        data = b"".join((before, source.read(to - from_), after))
        patches.append(Patch(index, object_id(data), data))
    return ManifestDiff(head.version_id, new_size, chunk, tuple(patches))

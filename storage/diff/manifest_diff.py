"""Manifest diffs: the changes of a revision, made locally or received from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage.errors import InvalidArgument
from storage.formats.manifest import RootNode, object_id
from storage.limits import DIFF_PATCHES_MAX, FILE_SIZE_MAX


@dataclass(frozen=True, slots=True)
class Patch:
    """Replaces chunk ``index`` with ``chunk_id``; ``data`` has its bytes, or None if the user has the chunk already."""

    index: int
    chunk_id: bytes
    data: bytes | None = None

    def __repr__(self) -> str:
        data = "" if self.data is None else f", data=<{len(self.data):,} bytes>"
        return f"Patch(index={self.index}, chunk_id={self.chunk_id.hex()}{data})"


@dataclass(frozen=True, slots=True)
class ManifestDiff:
    """The changes from one version's content to another's.

    Attributes:
        base_version_id: hex id of the version this applies to.
        new_size: bytes of the result.
        chunk_size: must be the file's own.
        patches: changed and added chunks, ascending by index.
        target_version_id: hex id of the resulting version, if it exists already.
    """

    base_version_id: str
    new_size: int
    chunk_size: int
    patches: tuple[Patch, ...]
    target_version_id: str | None = None

    @property
    def wire_bytes(self) -> int:
        """Bytes of chunk data carried."""
        return sum(len(patch.data) for patch in self.patches if patch.data is not None)


def check_diff(diff: ManifestDiff, root: RootNode) -> None:
    """Check that a diff from outside is well-formed, and that every chunk of the result has the right length.

    Chunk data is verified against its id here; the caller must check chunks without data.

    Raises:
        InvalidArgument: the diff is invalid; the text says why.
    """
    if diff.chunk_size != root.chunk_size:
        raise InvalidArgument(f"the diff has chunks of {diff.chunk_size} bytes, the file has {root.chunk_size}")
    if not 0 <= diff.new_size <= FILE_SIZE_MAX:
        raise InvalidArgument(f"new size {diff.new_size} is outside 0…{FILE_SIZE_MAX}")
    if len(diff.patches) > DIFF_PATCHES_MAX:
        raise InvalidArgument(f"a diff has at most {DIFF_PATCHES_MAX} patches; push the file instead")
    count = -(-diff.new_size // root.chunk_size)
    _check_order(diff.patches, count)
    _check_coverage(diff, root, count)
    for patch in diff.patches:
        _check_patch(patch, expected_length(diff.new_size, root.chunk_size, patch.index))


def expected_length(size: int, chunk_size: int, index: int) -> int:
    """Bytes of chunk ``index`` in a file of ``size`` bytes."""
    return min(chunk_size, size - index * chunk_size)


def _check_order(patches: Sequence[Patch], count: int) -> None:
    previous = -1
    for patch in patches:
        if not previous < patch.index < count:
            raise InvalidArgument(
                f"patch index {patch.index} is out of order or beyond the last chunk ({count} chunks); "
                "list patches once each, ascending"
            )
        previous = patch.index


def _check_coverage(diff: ManifestDiff, root: RootNode, count: int) -> None:
    """Added chunks, and old or new last chunks whose length changes, must be patched."""
    old_count = root.chunk_count
    required = min(count, old_count)
    added = [patch.index for patch in diff.patches if patch.index >= old_count]
    if len(added) != max(0, count - old_count):
        raise InvalidArgument(f"the file grows to {count} chunks, but not every chunk from {old_count} on is given")
    if required == 0:
        return
    last = required - 1
    if root.chunk_length(last) != expected_length(diff.new_size, root.chunk_size, last) and all(
        patch.index != last for patch in diff.patches
    ):
        raise InvalidArgument(f"chunk {last} changes its length with the new size and must be patched")


def _check_patch(patch: Patch, length: int) -> None:
    if len(patch.chunk_id) != 32:
        raise InvalidArgument(f"patch {patch.index}: a chunk id has 32 bytes, not {len(patch.chunk_id)}")
    if patch.data is None:
        return
    if len(patch.data) != length:
        raise InvalidArgument(f"patch {patch.index}: {len(patch.data)} bytes given, this chunk has {length}")
    if object_id(patch.data) != patch.chunk_id:
        raise InvalidArgument(f"patch {patch.index}: its data does not have the BLAKE3 hash {patch.chunk_id.hex()}")

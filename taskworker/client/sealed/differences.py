"""Differences between a sealed version and local content, found by comparing verified salts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from storage import Patch
from storage.diff.local_diff import Changed
from storage.limits import BytesLike
from storage.progress import Progress
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.client.differences import RemoteDiff
from taskworker.client.sealed.content import SealedContent
from taskworker.client.sealed.reading import SealedVersion


class SealedDiff(RemoteDiff):
    """The difference between a sealed version and local content, in chunks of the stored file.

    If anything differs, the last chunks do as well: they have the list of all blocks.

    Args:
        channel: the connection to the server.
        base: the version to compare with.
        content: the local content, sealed.
        changed: the only places of the content that may differ; None: compare everything.
        anew: make the last chunks anew in any case, since they vouch for another note.
        deadline: for the calls that are made.
        progress: called with (bytes compared, total bytes).
    """

    def __init__(
        self,
        channel: Channel,
        base: SealedVersion,
        content: SealedContent,
        *,
        changed: Changed | None = None,
        anew: bool = False,
        deadline: Deadline,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(channel, base.stored, content, changed=None, deadline=deadline)
        self._before = base
        self._sealed = content
        self._places = None if changed is None else list(changed)
        self._anew = anew
        self._tell = progress

    def is_empty(self) -> bool:
        """Whether the content equals the version's; stops at the first difference."""
        return self._sealed.layout.size == self._before.layout.size and next(self._changed_blocks(), None) is None

    def changes(self) -> Iterator[tuple[Patch, BytesLike]]:
        """The changed chunks in order, each with its bytes."""
        layout = self._sealed.layout
        anything = self._anew or layout.size != self._before.layout.size
        for index in self._changed_blocks():
            anything = True
            if index < layout.sealed_chunks:  # the last block may share its chunk with what follows it
                yield self._patch(index)
        if anything:
            yield from map(self._patch, range(layout.sealed_chunks, layout.chunks))

    def _patch(self, index: int) -> tuple[Patch, BytesLike]:
        data = self.chunk(index)
        return Patch(index, blake3(data).digest()), data

    def _changed_blocks(self) -> Iterator[int]:
        layout, before = self._sealed.layout, self._before
        examined = None if self._places is None else self._touched_blocks(self._places)
        for index in range(layout.blocks):
            known = before.salt(index) if index < before.layout.blocks else None
            if known is not None and examined is not None and index not in examined:
                self._sealed.take_salt(index, known)
            elif self._sealed.salt(index) != known:
                yield index
            if self._tell is not None:
                self._tell(min((index + 1) * layout.block_bytes, layout.size), layout.size)

    def _touched_blocks(self, places: Iterable[tuple[int, int]]) -> set[int]:
        """The blocks that overlap a change, and the one that the new size cuts or lengthens."""
        layout = self._sealed.layout
        touched = {min(layout.size, self._before.layout.size) // layout.block_bytes}
        for offset, length in places:
            if length:
                last = (offset + length - 1) // layout.block_bytes
                touched.update(range(offset // layout.block_bytes, min(layout.blocks, last + 1)))
        return touched


def changed_content(base: SealedVersion, head: SealedVersion) -> Iterator[tuple[int, BytesLike]]:
    """(offset, bytes) of what changed from one version of a file to another, verified, in blocks."""
    layout = head.layout
    if layout.chunk_size != base.layout.chunk_size:
        runs = [(0, layout.blocks)]
    else:
        runs = list(_runs(index for index in range(layout.blocks) if _differs(base, head, index)))
    for first, stop in runs:
        for index, block in head.blocks(first, stop):
            yield index * layout.block_bytes, block


def _differs(base: SealedVersion, head: SealedVersion, index: int) -> bool:
    return index >= base.layout.blocks or base.salt(index) != head.salt(index)


def _runs(indexes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as ranges, (first, one after the last)."""
    first = stop = -1
    for index in indexes:
        if index != stop:
            if stop > first:
                yield first, stop
            first = index
        stop = index + 1
    if stop > first:
        yield first, stop

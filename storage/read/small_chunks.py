"""Which chunks of a version are small enough to be kept in memory once they were read."""

from __future__ import annotations

from storage.formats.manifest import RootNode, child_at, stored_id
from storage.keys import StripeKey
from storage.stripes.hot_objects import OBJECT_BYTES_MAX
from storage.stripes.stripes import chunk_stripe


def small_chunks(root: RootNode) -> list[StripeKey]:
    """The stripes of those chunks that :class:`~storage.stripes.hot_objects.HotObjects` may keep.

    It reads no nodes: of a file that is so large that its root does not name all chunks, it returns none.
    """
    if root.height:
        return []
    first = 0 if root.chunk_size <= OBJECT_BYTES_MAX else max(0, root.chunk_count - 1)
    return [
        chunk_stripe(stored_id(child_at(root.children, index, root.reference_bytes)), root.profile)
        for index in range(first, root.chunk_count)
        if root.chunk_length(index) <= OBJECT_BYTES_MAX
    ]

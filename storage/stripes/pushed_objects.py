"""Small objects of files that were pushed just now, kept in memory, so that reading them asks no store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from storage.keys import StripeKey
from storage.limits import BytesLike
from storage.stripes.hot_objects import OBJECT_BYTES_MAX

_OVERHEAD_BYTES = 850  # of an object, for its key, its file, views of it, and places in dictionaries (measured: 800)


class PushedObjects:
    """Keeps objects by their stripe keys, and drops those that were pushed or read longest ago. Thread-safe.

    They are apart from :class:`~storage.stripes.hot_objects.HotObjects`, so that many pushes drive out nothing that is
    read often. An object's key contains the hash of its bytes, so what is kept can never be out of date.

    Args:
        bytes_max: memory for all objects, in bytes, with what Python needs for each; 0: nothing is kept.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._objects: OrderedDict[StripeKey, tuple[BytesLike, bytes]] = OrderedDict()  # with the id of the file
        self._of_files: dict[bytes, set[StripeKey]] = {}
        self._size = self._hits = 0
        self._lock = threading.Lock()

    def keep(self, stripe: StripeKey, data: BytesLike, file_id: bytes) -> None:
        """Keep an object, if it is small. It is not copied, so nobody may change it from now on.

        To be called before the file can be deleted, so that :meth:`forget_files` finds it.

        Args:
            stripe: its stripe key.
            data: all of its bytes.
            file_id: the file that it is part of.
        """
        size = len(data) + _OVERHEAD_BYTES
        if len(data) > OBJECT_BYTES_MAX or size > self._bytes_max:
            return
        with self._lock:
            self._drop(stripe)
            self._objects[stripe] = data, file_id
            self._of_files.setdefault(file_id, set()).add(stripe)
            self._size += size
            while self._size > self._bytes_max:
                self._drop(next(iter(self._objects)))

    def fill(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> Sequence[tuple[StripeKey, memoryview]]:
        """Fill the targets of those objects that are kept, and return the other ones."""
        if not self._objects:
            return reads
        left = []
        for read in reads:
            stripe, target = read
            with self._lock:
                kept = self._objects.get(stripe)
                if kept is not None:
                    self._objects.move_to_end(stripe)
                    self._hits += 1
            if kept is not None and len(kept[0]) == len(target):
                target[:] = kept[0]
            else:
                left.append(read)
        return left

    def forget(self, stripes: Iterable[StripeKey]) -> None:
        """Drop objects that are being removed from the stores."""
        with self._lock:
            for stripe in stripes:
                self._drop(stripe)

    def forget_files(self, file_ids: Iterable[bytes]) -> None:
        """Drop the objects of files that were deleted, or versions of which were."""
        with self._lock:
            for file_id in file_ids:
                for stripe in list(self._of_files.get(file_id, ())):
                    self._drop(stripe)

    def _drop(self, stripe: StripeKey) -> None:
        kept = self._objects.pop(stripe, None)
        if kept is None:
            return
        data, file_id = kept
        self._size -= len(data) + _OVERHEAD_BYTES
        stripes = self._of_files[file_id]
        stripes.discard(stripe)
        if not stripes:
            del self._of_files[file_id]

    @property
    def hits(self) -> int:
        """How often an object was there."""
        return self._hits

    @property
    def size(self) -> int:
        """Bytes of memory in use, about."""
        return self._size

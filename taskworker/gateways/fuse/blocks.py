"""Blocks of stored content, kept in bounded memory and read ahead of those who read in order."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from taskworker.errors import DeadlineExceeded

BLOCK_BYTES = 1 << 20
"""Bytes of a block: about a chunk of a stored file, which is read and verified as a whole."""
CACHE_BYTES_DEFAULT = 64 << 20
_THREADS = 8
_AHEAD_MAX = 8  # blocks before a reader
_AHEAD_TOGETHER_MAX = 16  # blocks that are read ahead at one time, for all readers together
_STREAMS_MAX = 256


@dataclass(frozen=True, slots=True)
class Source:
    """Stored content that never changes.

    Attributes:
        key: names it.
        size: its bytes.
        fetch: reads the verified bytes of a range.
    """

    key: Hashable
    size: int
    fetch: Callable[[int, int], bytes]


_Key = tuple[Hashable, int]


class BlockCache:
    """Reads ranges of sources by blocks. Thread-safe.

    Args:
        bytes_max: of the blocks that are kept; those being read come on top, at most one for each thread.
        timeout_s: seconds that one block may take.
    """

    def __init__(self, bytes_max: int, timeout_s: float) -> None:
        self._kept_max = max(1, bytes_max // BLOCK_BYTES)
        self._timeout_s = timeout_s
        self._lock = threading.RLock()  # a block that has come already calls back at once
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._coming: dict[_Key, Future[bytes]] = {}
        self._ahead = 0
        self._streams: OrderedDict[_Key, int] = OrderedDict()
        self._threads = ThreadPoolExecutor(_THREADS, "mount-read")

    def read(self, source: Source, start: int, stop: int) -> bytes:
        """The bytes from ``start`` up to ``stop``, which must not be beyond the end.

        Raises:
            DeadlineExceeded: they did not come in time.
            StorageError: they cannot be read.
        """
        if start >= stop:
            return b""
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        pieces = []
        for number in range(first, last + 1):
            block = self._block(source, number)
            at = number * BLOCK_BYTES
            pieces.append(block[max(0, start - at) : stop - at])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Read no more ahead, and forget what was read."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._kept.clear()

    def _block(self, source: Source, number: int) -> bytes:
        with self._lock:
            run = self._run_of(source, number)
            block = self._found((source.key, number))
            coming = None if block is not None else self._begun(source, number)
            if run > 1:
                self._read_ahead(source, number, run)
        if block is not None:
            return block
        assert coming is not None, "it was begun"
        try:
            return coming.result(self._timeout_s)
        except TimeoutError:
            with self._lock:
                if self._coming.get((source.key, number)) is coming:
                    del self._coming[source.key, number]  # whoever asks next tries anew
            coming.cancel()
            raise DeadlineExceeded(f"a block was not read within {self._timeout_s:g} s") from None

    def _found(self, key: _Key) -> bytes | None:
        block = self._kept.get(key)
        if block is not None:
            self._kept.move_to_end(key)
        return block

    def _run_of(self, source: Source, number: int) -> int:
        """How many blocks in order a reader has read with this one; 0 if it has been counted."""
        key, following = (source.key, number), (source.key, number + 1)
        if following in self._streams:
            return 0
        run = self._streams.pop(key, 0) + 1
        self._streams[following] = run
        while len(self._streams) > _STREAMS_MAX:
            self._streams.popitem(last=False)
        return run

    def _read_ahead(self, source: Source, number: int, run: int) -> None:
        ahead = min(run, _AHEAD_MAX, self._kept_max // 2)
        last = (source.size - 1) // BLOCK_BYTES
        for each in range(number + 1, min(number + ahead, last) + 1):
            key = (source.key, each)
            if self._ahead >= _AHEAD_TOGETHER_MAX:
                return
            if key not in self._kept and key not in self._coming:
                self._ahead += 1
                self._begun(source, each).add_done_callback(self._ended_ahead)

    def _ended_ahead(self, _future: Future[bytes]) -> None:
        with self._lock:
            self._ahead -= 1

    def _begun(self, source: Source, number: int) -> Future[bytes]:
        key = (source.key, number)
        coming = self._coming.get(key)
        if coming is None or coming.cancelled():
            coming = self._coming[key] = self._threads.submit(self._fetched, source, number)
        return coming

    def _fetched(self, source: Source, number: int) -> bytes:
        key = (source.key, number)
        start = number * BLOCK_BYTES
        try:
            block = source.fetch(start, min(start + BLOCK_BYTES, source.size))
            with self._lock:
                self._kept[key] = block
                while len(self._kept) > self._kept_max:
                    self._kept.popitem(last=False)
        finally:
            with self._lock:
                self._coming.pop(key, None)
        return block

"""Reading ahead of a program that reads a file from start to end, and not of one that jumps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from fsspec.caching import BaseCache, register_cache

_AHEAD_BYTES_MIN = 256 * 1024
_AHEAD_BYTES_MAX = 8 * 1024 * 1024


class GrowingReadAhead(BaseCache):
    """A window that grows while a file is read in order; the next one is fetched meanwhile.

    Args:
        blocksize: unused.
        fetcher: (start, stop) → the bytes of that range.
        size: of the file.
    """

    name = "growing"

    def __init__(self, blocksize: int, fetcher: Callable[[int, int], bytes], size: int) -> None:
        super().__init__(blocksize, fetcher, size)
        self._at = 0
        self._window = b""
        self._ahead = _AHEAD_BYTES_MIN
        self._next: Future[bytes] | None = None
        self._next_at = 0
        self._threads: ThreadPoolExecutor | None = None

    def _fetch(self, start: int | None, stop: int | None) -> bytes:
        at = start or 0
        end = self.size if stop is None else min(stop, self.size)
        pieces: list[bytes] = []
        while at < end:
            piece = self._piece(at, end)
            pieces.append(piece)
            at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, at: int, end: int) -> bytes:
        """Bytes from ``at``, up to ``end`` or as far as they are at hand."""
        if not self._at <= at < self._at + len(self._window):
            if at != self._next_at and end - at > _AHEAD_BYTES_MAX:
                return self._got(at, end)
            self._move_to(at, end)
        return self._window[at - self._at : end - self._at]

    def _move_to(self, at: int, end: int) -> None:
        coming, self._next = self._next, None
        is_next = at == self._next_at and at > 0
        self._ahead = min(2 * self._ahead, _AHEAD_BYTES_MAX) if is_next else _AHEAD_BYTES_MIN
        if is_next and coming is not None:
            self._window = coming.result()
        else:
            if coming is not None:
                coming.cancel()
            self._window = self._got(at, min(max(end, at + self._ahead), at + _AHEAD_BYTES_MAX, self.size))
        self._at, self._next_at = at, at + len(self._window)
        if is_next and self._next_at < self.size:
            self._next = self._executor().submit(self._got, self._next_at, min(self._next_at + self._ahead, self.size))

    def _got(self, start: int, stop: int) -> bytes:
        data: bytes = self.fetcher(start, stop)
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes were read where {stop - start} are stored")
        return data

    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, "read-ahead")
        return self._threads

    def close(self) -> None:
        """Stop reading ahead."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._next, self._window = None, b""


register_cache(GrowingReadAhead, clobber=True)

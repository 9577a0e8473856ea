"""Checksums that are computed while the content travels on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from taskworker.gateways.s3.checksums import Running

_BATCH = 512 * 1024
"""Bytes that are handed to the other thread at once: a hand-over costs as much as hashing some 10 KiB."""
_THREADS = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="s3-hash")


class Beside:
    """Computes checksums in another thread, at most two batches of bytes behind.

    Args:
        sums: what to compute; nobody else may use them before :meth:`finish`.
    """

    def __init__(self, sums: Sequence[Running]) -> None:
        self._sums = sums
        self._batch: list[memoryview] = []
        self._size = 0
        self._running: Future[None] | None = None

    def update(self, data: memoryview) -> None:
        """Add what comes next; its bytes must not change."""
        if not self._sums:
            return
        self._batch.append(data)
        self._size += len(data)
        if self._size >= _BATCH:
            self._hand_over()

    def finish(self) -> None:
        """Return when all that was added is in the checksums."""
        self._wait()
        _hashed(self._sums, self._batch)
        self._batch, self._size = [], 0

    def _hand_over(self) -> None:
        self._wait()
        batch, self._batch, self._size = self._batch, [], 0
        self._running = _THREADS.submit(_hashed, self._sums, batch)

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None


def _hashed(sums: Sequence[Running], batch: Sequence[memoryview]) -> None:
    for data in batch:
        for one in sums:
            one.update(data)

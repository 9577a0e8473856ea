"""A worker's own scrub: all it holds is read and verified, over and over, at a bounded rate."""

from __future__ import annotations

import logging
import threading
import time

from storage.errors import StorageError
from storage.shards import LocalVolume

log = logging.getLogger(__name__)

SCRUB_BYTES_PER_S = 16 << 20
"""A disk of 4 TB is gone through in three days."""

_PAUSE_S = 3600.0  # between two rounds
_FIRST_S = 60.0
_SLICE_S = 0.5  # how far it may run ahead of its rate


class SelfScrub:
    """Verifies a volume in a thread. Rotten shards are forgotten, so that the pool makes them anew.

    Args:
        bytes_per_s: how fast; 0: not at all.
        stopping: ends it.
        first_s: when the first round begins, seconds from the start.
    """

    def __init__(self, bytes_per_s: int, stopping: threading.Event, first_s: float = _FIRST_S) -> None:
        self.found = 0
        self._bytes_per_s = bytes_per_s
        self._stopping = stopping
        self._first_s = first_s
        self._thread: threading.Thread | None = None

    def start(self, volume: LocalVolume) -> None:
        """Begin."""
        if self._bytes_per_s:
            self._thread = threading.Thread(target=self._run, args=(volume,), name="self-scrub", daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Return when it has ended."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, volume: LocalVolume) -> None:
        pause_s = self._first_s
        while not self._stopping.wait(pause_s):
            pause_s = _PAUSE_S
            try:
                self._round(volume)
            except _Ended:
                return
            except (StorageError, OSError) as error:
                log.warning("the volume could not be verified, and is again later: %s", error)

    def _round(self, volume: LocalVolume) -> None:
        began_s, done = time.monotonic(), 0

        def pace(count: int) -> None:
            nonlocal done
            done += count
            ahead_s = began_s + done / self._bytes_per_s - time.monotonic()
            if self._stopping.is_set() or (ahead_s > _SLICE_S and self._stopping.wait(ahead_s)):
                raise _Ended

        for key in volume.verify(pace).quarantine_rest():
            self.found += 1
            log.warning("shard %s is rotten; it is made anew", key.hex())


class _Ended(Exception):
    """The worker stops in the midst of a round."""

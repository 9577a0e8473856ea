"""A worker's own scrub: reads and verifies everything the worker holds, over and over, at a limited rate."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from storage.clocks import wall_ms
from storage.errors import StorageError
from storage.shards import LocalVolume
from storage.system.private_files import write_private

log = logging.getLogger(__name__)

SCRUB_BYTES_PER_S = 16 << 20
"""At this rate, a scrub of 4 TB takes three days."""

_PAUSE_S = 3600.0  # between two rounds
_FIRST_S = 60.0
_SLICE_S = 0.5  # how far it may run ahead of its rate


@dataclass(frozen=True, slots=True)
class ScrubState:
    """Progress of a worker's scrub.

    Attributes:
        done: bytes verified in the round under way.
        total: bytes to verify in that round; 0 between two rounds.
        bytes_per_s: its average rate so far.
        ended_ms: when a round last ended; 0: never.
        next_ms: when the next one begins; 0 during a round, or if no round is planned.
        errors: consecutive rounds that failed.
        found: rotten shards found since the worker started.
    """

    done: int = 0
    total: int = 0
    bytes_per_s: float = 0.0
    ended_ms: int = 0
    next_ms: int = 0
    errors: int = 0
    found: int = 0


class _Kept(msgspec.Struct, frozen=True):
    """State that survives a restart: when a round last ended, and the last segment verified in the current round."""

    ended_ms: int = 0
    segment: int = -1


_documents = msgspec.json.Decoder(_Kept)


class SelfScrub:
    """Verifies a volume in a thread. Sets corrupt shards aside, so that the pool rebuilds them.

    Args:
        bytes_per_s: the rate; 0: never scrub.
        stopping: ends the scrub when set.
        kept: file that keeps the progress, so that a restarted worker goes on from there; None: it starts over.
        first_s: seconds from the start until the first round begins.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        bytes_per_s: int,
        stopping: threading.Event,
        kept: Path | None = None,
        first_s: float = _FIRST_S,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._clock_s = clock_s
        self._now_ms = now_ms
        self._bytes_per_s = bytes_per_s
        self._stopping = stopping
        self._path = kept
        self._first_s = first_s
        self._thread: threading.Thread | None = None
        self._kept = _Kept()
        self.state = ScrubState()

    def start(self, volume: LocalVolume | Callable[[], LocalVolume]) -> None:
        """Start scrubbing ``volume``, or the volume that it returns at the beginning of a round."""
        if self._bytes_per_s:
            self._kept = self._load()
            current = (lambda: volume) if isinstance(volume, LocalVolume) else volume
            self._thread = threading.Thread(target=self._run, args=(current,), name="self-scrub", daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Wait until the scrub has ended."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, current: Callable[[], LocalVolume]) -> None:
        pause_s = self._first_s
        if self._kept.segment < 0 and self._kept.ended_ms:
            pause_s = max(pause_s, min(_PAUSE_S, (self._kept.ended_ms - self._now_ms()) / 1000 + _PAUSE_S))
        while not self._wait(pause_s):
            pause_s = _PAUSE_S
            try:
                self._round(current())
            except _Ended:
                return
            except (StorageError, OSError) as error:
                log.warning("the volume could not be verified, and is tried again later: %s", error)
                self.state = replace(self.state, done=0, total=0, errors=self.state.errors + 1)

    def _wait(self, pause_s: float) -> bool:
        next_ms = self._now_ms() + int(pause_s * 1000)
        self.state = replace(self.state, done=0, total=0, ended_ms=self._kept.ended_ms, next_ms=next_ms)
        return self._stopping.wait(pause_s)

    def _round(self, volume: LocalVolume) -> None:
        """Verify segment after segment, except those that were verified before the worker was last stopped."""
        began_s, read = self._clock_s(), 0
        sizes = {number: size for number, size in volume.segment_sizes().items() if number > self._kept.segment}
        self.state = replace(self.state, done=0, total=max(1, sum(sizes.values())), next_ms=0)

        def pace(count: int) -> None:
            nonlocal read
            read += count
            taken_s = self._clock_s() - began_s
            done = min(read, self.state.total)
            self.state = replace(self.state, done=done, bytes_per_s=read / max(taken_s, 1e-3))
            ahead_s = read / self._bytes_per_s - taken_s
            if self._stopping.is_set() or (ahead_s > _SLICE_S and self._stopping.wait(ahead_s)):
                raise _Ended

        for number in sizes:
            for key in volume.verify(pace, [number]).quarantine_rest():
                self.state = replace(self.state, found=self.state.found + 1)
                log.warning("shard %s is rotten; the pool rebuilds it", key.hex())
            self._keep(_Kept(self._kept.ended_ms, number))
        self._keep(_Kept(self._now_ms()))
        self.state = replace(self.state, errors=0)

    def _load(self) -> _Kept:
        try:
            return _documents.decode(self._path.read_bytes()) if self._path is not None else _Kept()
        except FileNotFoundError:
            return _Kept()
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the progress of the scrub cannot be read, so it starts over: %s", error)
            return _Kept()

    def _keep(self, kept: _Kept) -> None:
        self._kept = kept
        if self._path is not None:
            write_private(self._path, msgspec.json.encode(kept), durable=False)


class _Ended(Exception):
    """The worker stops in the middle of a round."""

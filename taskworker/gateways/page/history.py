"""Figures of a pool over the last hours, for charts. They are kept in memory, and begin with the page's process."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from storage.clocks import wall_ms
from storage.errors import StorageError
from taskworker.client.functions import FunctionStatus
from taskworker.client.pool import PoolClient, PoolStatus

_log = logging.getLogger(__name__)
SAMPLE_S = 10.0
_RECENT_MAX = 360
"""An hour of figures that are ten seconds apart."""
_EARLIER_S = 300.0
_EARLIER_MAX = 288
"""A day of figures that are five minutes apart."""
_EARLY_MS = 1000
"""What is asked for every ten seconds does not come to the millisecond."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A pool's figures at one moment; sizes in bytes, ``calls_per_s`` None if they are not known."""

    time_ms: int
    used: int
    stored: int
    versions: int
    cpu: float
    calls_per_s: float | None


class History:
    """Samples, close to each other for the last hour, further apart before. Thread-safe.

    Args:
        now_ms: milliseconds since 1970.
    """

    def __init__(self, now_ms: Callable[[], int] = wall_ms) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._recent: deque[Sample] = deque(maxlen=_RECENT_MAX)
        self._earlier: deque[Sample] = deque(maxlen=_EARLIER_MAX)

    def note(self, status: PoolStatus, functions: list[FunctionStatus] | None) -> None:
        """Keep what a pool's status says, unless another was kept just before."""
        now_ms = self._now_ms()
        alive = [worker for worker in status.workers if worker.state == "alive"]
        sample = Sample(
            now_ms,
            sum(worker.bytes_used for worker in status.workers),
            status.logical_bytes,
            status.versions,
            sum(worker.cpu for worker in alive) / len(alive) if alive else 0.0,
            None if functions is None else sum(one.rate for one in functions),
        )
        with self._lock:
            _kept(self._recent, sample, SAMPLE_S)
            _kept(self._earlier, sample, _EARLIER_S)

    def samples(self) -> list[Sample]:
        """All of them, oldest first."""
        with self._lock:
            recent, earlier = list(self._recent), list(self._earlier)
        start_ms = recent[0].time_ms if recent else 0
        return [sample for sample in earlier if sample.time_ms < start_ms] + recent


def _kept(samples: deque[Sample], sample: Sample, apart_s: float) -> None:
    if samples and sample.time_ms < samples[-1].time_ms:  # the clock was set back
        samples.clear()
    if not samples or sample.time_ms - samples[-1].time_ms >= 1000 * apart_s - _EARLY_MS:
        samples.append(sample)


class Watch:
    """Asks a pool for its figures again and again, so that charts go on while nobody looks; ends with :meth:`close`.

    Args:
        client: whose token may see them.
        history: what keeps them.
    """

    def __init__(self, client: PoolClient, history: History) -> None:
        self._client = client
        self._history = history
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._client.close()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            try:
                status = self._client.status()
            except StorageError as error:
                _log.debug("no figures: %s", error)
                continue
            except Exception:  # the charts would end for good
                _log.exception("no figures")
                continue
            if status is not None:
                self._history.note(status, None)

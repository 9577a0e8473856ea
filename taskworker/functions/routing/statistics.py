"""Statistics of a function's calls: counts, rate, and duration."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from storage.errors import FormatError

_KEPT = 4096
_FUNCTIONS_MAX = 1024
"""Functions with statistics; if there are more, the least recently called are forgotten."""
_KEPT_OVER_RESTARTS = 512
_RATE_WINDOW_S = 60.0
_changes = itertools.count(1)  # unique numbers of changes, also across functions that were removed

log = logging.getLogger(__name__)


class _Kept(msgspec.Struct, array_like=True):
    calls: Annotated[int, msgspec.Meta(ge=0)]
    errors: Annotated[int, msgspec.Meta(ge=0)]
    cached: Annotated[int, msgspec.Meta(ge=0)]
    moved: Annotated[int, msgspec.Meta(ge=0)]
    taken_s: list[float]


_documents = msgspec.json.Decoder(_Kept)


@dataclass(frozen=True, slots=True)
class CallFigures:
    """Statistics of one function; percentiles in seconds over its latest 4096 calls."""

    calls: int = 0
    errors: int = 0
    cached: int = 0
    moved: int = 0
    rate: float = 0.0
    p50_s: float = 0.0
    p95_s: float = 0.0
    p99_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CallCounts:
    """What was counted of a function's calls; ``seconds`` only of those that ended since the pool started."""

    calls: int
    errors: int
    cached: int
    moved: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FiguresChanged:
    """Statistics to save.

    Attributes:
        documents: documents of the functions whose statistics changed.
        gone: functions whose statistics should be removed.
        changes: the number of the change that each document includes, by function.
    """

    documents: list[tuple[str, bytes]]
    gone: list[str]
    changes: dict[str, int]


class CallStatistics:
    """Counts the calls of one function. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._changes = 0
        self._calls = self._errors = self._cached = self._moved = 0
        self._total_s = 0.0
        self._ended = 0  # calls that ran, not answered from the cache
        # Ring buffers of the latest calls: 64 KiB at most, where tuples would take 450.
        self._ended_at = array("d")
        self._taken_s = array("d")

    def ended(self, taken_s: float, *, failed: bool) -> None:
        """Count a call that ended."""
        with self._lock:
            self._note(self._clock_s(), taken_s)
            self._calls += 1
            self._errors += failed
            self._total_s += taken_s
            self._changes = next(_changes)

    def _note(self, at: float, taken_s: float) -> None:
        """Record when a call ended, and how long it took; the caller holds the lock."""
        place = self._ended % _KEPT
        if place == len(self._ended_at):
            self._ended_at.append(at)
            self._taken_s.append(taken_s)
        else:
            self._ended_at[place], self._taken_s[place] = at, taken_s
        self._ended += 1

    def from_cache(self) -> None:
        """Count a call that was answered from the cache."""
        with self._lock:
            self._calls += 1
            self._cached += 1
            self._changes = next(_changes)

    def was_moved(self) -> None:
        """Count a call that moved to another worker because its worker was lost."""
        with self._lock:
            self._moved += 1
            self._changes = next(_changes)

    @property
    def changes(self) -> int:
        """A number that changes whenever something is counted."""
        return self._changes

    def to_json(self) -> bytes:
        """Serialize what should survive a restart."""
        with self._lock:
            kept = min(self._ended, _KEPT)
            oldest = self._ended - kept
            taken_s = [self._taken_s[number % _KEPT] for number in range(oldest, self._ended)][-_KEPT_OVER_RESTARTS:]
            counts = _Kept(self._calls, self._errors, self._cached, self._moved, [round(one, 6) for one in taken_s])
        return msgspec.json.encode(counts)

    def restore(self, document: bytes) -> None:
        """Start from what was saved before a restart; the rate only covers later calls.

        Raises:
            FormatError: it is not such a document.
        """
        try:
            kept = _documents.decode(document)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FormatError(f"the statistics cannot be read: {error}") from None
        with self._lock:
            self._calls, self._errors, self._cached, self._moved = kept.calls, kept.errors, kept.cached, kept.moved
            for taken_s in kept.taken_s[-_KEPT_OVER_RESTARTS:]:
                self._note(-math.inf, taken_s)

    def counts(self) -> CallCounts:
        """What was counted up to now; quick."""
        with self._lock:
            return CallCounts(self._calls, self._errors, self._cached, self._moved, self._total_s)

    def figures(self) -> CallFigures:
        """The current statistics."""
        with self._lock:
            kept = min(self._ended, _KEPT)
            ended_at, taken_s = list(self._ended_at[:kept]), sorted(self._taken_s[:kept])
            counts = (self._calls, self._errors, self._cached, self._moved)
        now = self._clock_s()
        since = now - _RATE_WINDOW_S
        recent = [at for at in ended_at if at >= since]
        # If the window has more calls than are kept, the kept ones determine its length.
        over_s = _RATE_WINDOW_S if len(recent) < _KEPT else now - min(recent)
        return CallFigures(*counts, len(recent) / over_s, *(_percentile(taken_s, share) for share in (0.5, 0.95, 0.99)))


class StatisticsByFunction:
    """The statistics of all functions that were called lately. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._by_function: dict[str, CallStatistics] = {}
        self._saved: dict[str, int] = {}

    def of(self, function: str) -> CallStatistics:
        """The statistics of a function that is being called; created if absent."""
        with self._lock:
            found = self._by_function.pop(function, None) or CallStatistics(self._clock_s)
            self._by_function[function] = found  # most recently called last
            while len(self._by_function) > _FUNCTIONS_MAX:
                del self._by_function[next(iter(self._by_function))]
            return found

    def figures(self, function: str) -> CallFigures:
        """The current statistics of a function."""
        with self._lock:
            found = self._by_function.get(function)
        return CallFigures() if found is None else found.figures()

    def latest(self, most: int) -> dict[str, CallCounts]:
        """What was counted of the functions that were called last."""
        with self._lock:
            latest = list(self._by_function.items())[-most:]
        return {function: statistics.counts() for function, statistics in latest}

    def forget(self, function: str) -> None:
        """Forget a function that was removed."""
        with self._lock:
            self._by_function.pop(function, None)

    def changed(self) -> FiguresChanged:
        """The statistics that changed, and the functions that were removed, since the last call of :meth:`saved`."""
        with self._lock:
            all_of_them = list(self._by_function.items())
            gone = [function for function in self._saved if function not in self._by_function]
            saved = dict(self._saved)
        documents, changes = [], {}
        for function, statistics in all_of_them:
            count = statistics.changes
            if saved.get(function) != count:
                documents.append((function, statistics.to_json()))
                changes[function] = count
        return FiguresChanged(documents, gone, changes)

    def saved(self, changed: FiguresChanged) -> None:
        """Note that these statistics have been saved."""
        with self._lock:
            self._saved |= changed.changes
            for function in changed.gone:
                self._saved.pop(function, None)

    def restore(self, function: str, document: bytes) -> None:
        """Start from saved statistics; unreadable ones are ignored."""
        try:
            statistics = self.of(function)
            statistics.restore(document)
            with self._lock:
                self._saved[function] = statistics.changes
        except FormatError as error:
            log.warning("the statistics of function %s start from zero: %s", function, error)


def _percentile(ordered: list[float], share: float) -> float:
    """A percentile by nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

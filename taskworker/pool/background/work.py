"""The records of background work that survive restarts of the pool, and the pace of work while users are active."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import msgspec

from storage.catalog import Catalog
from taskworker.reports import WorkStatus

log = logging.getLogger(__name__)

WORK_DOCUMENT = "pool-work"
_REST_S_MAX = 2.0
_LOOK_S = 0.05


class WorkRecord(msgspec.Struct, frozen=True):
    """The latest outcome of a piece of background work; see :class:`WorkStatus`. ``result`` is from its last end."""

    ended_ms: int = 0
    result: str = ""
    next_ms: int = 0
    errors: int = 0
    error: str = ""

    def view(self, name: str, state: str = "idle") -> WorkStatus:
        """Its status while it is not running."""
        return WorkStatus(
            name,
            state,
            note=self.result,
            next_ms=self.next_ms,
            errors=self.errors,
            error=self.error,
            ended_ms=self.ended_ms,
        )


_raw_records = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_records = msgspec.msgpack.Decoder(WorkRecord)


class WorkJournal:
    """Records of background work, stored in the catalog, so that a restarted pool goes on with its schedule.

    A record that cannot be read counts as absent: only that piece of work becomes due at once. Thread-safe.

    Args:
        catalog: the pool's catalog.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, catalog: Catalog, now_ms: Callable[[], int]) -> None:
        self._catalog = catalog
        self.now_ms = now_ms
        self._lock = threading.Lock()
        self._records = _read(catalog.document(WORK_DOCUMENT))

    def record(self, name: str) -> WorkRecord:
        """The record of a piece of work."""
        with self._lock:
            return self._records.get(name, WorkRecord())

    def plan(self, name: str, next_ms: int) -> None:
        """Record when it is due next, in milliseconds since 1970; 0: not planned."""
        self._keep(name, msgspec.structs.replace(self.record(name), next_ms=next_ms))

    def ended(self, name: str, result: str, next_ms: int = 0) -> None:
        """Record that it has ended, with its result."""
        self._keep(name, WorkRecord(self.now_ms(), result, next_ms))

    def waits(self, name: str, why: str) -> None:
        """Record that it is due but waits, and why."""
        self._keep(name, msgspec.structs.replace(self.record(name), error=why))

    def failed(self, name: str, error: str, next_ms: int) -> None:
        """Record that it failed, and when it is tried again."""
        before = self.record(name)
        self._keep(name, msgspec.structs.replace(before, next_ms=next_ms, errors=before.errors + 1, error=error))

    def _keep(self, name: str, record: WorkRecord) -> None:
        with self._lock:
            if self._records.get(name) != record:
                self._records = self._records | {name: record}
                self._catalog.save_document(WORK_DOCUMENT, msgspec.msgpack.encode(self._records))


class Tranquility:
    """Rests while users are active, in multiples of the time worked (the word and the idea are Garage's).

    Threads that work concurrently rest one after another, since all their work together has to give way.

    Args:
        factor: seconds of rest per second of work; 0: never rest.
        is_busy: whether users are active.
        closed: ends a rest.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        factor: float,
        is_busy: Callable[[], bool],
        closed: threading.Event,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock_s = clock_s
        self._factor = factor
        self._is_busy = is_busy
        self._closed = closed
        self._resting = threading.Lock()

    def lull(self, is_over: Callable[[], bool]) -> None:
        """Wait until users pause, ``is_over`` returns true, or two seconds have passed."""
        give_up_s = self._clock_s() + _REST_S_MAX
        while self._factor and self._is_busy() and not is_over() and self._clock_s() < give_up_s:
            if self._closed.wait(_LOOK_S):
                return

    def rest(self, worked_s: float) -> None:
        """Rest, if users are active."""
        if not self._factor or not self._is_busy():
            return
        with self._resting:
            if self._is_busy():
                self._closed.wait(min(_REST_S_MAX, self._factor * worked_s))


def _read(raw: bytes | None) -> dict[str, WorkRecord]:
    """The records in a document, except those that cannot be read."""
    records: dict[str, WorkRecord] = {}
    try:
        kept = {} if raw is None else _raw_records.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("the records of this pool's background work cannot be read, so all of it is due now: %s", error)
        return records
    for name, record in kept.items():
        try:
            records[name] = _records.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("the record of %s cannot be read, so it is due now: %s", name, error)
    return records

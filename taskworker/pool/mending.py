"""Mending: the pool's background work that brings every shard to where it belongs, in full number.

One pass makes what is missing (:func:`storage.maintenance.repair.repair`), then, once every shard is in
its place, drops the copies that were left elsewhere by stand-ins and former layouts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from storage import FileStorage
from storage.batching import batched
from storage.errors import StorageError
from storage.keys import STRIPE_KEY_BYTES, ShardKey, StripeKey
from storage.reports import RepairReport
from storage.runtime import Runtime
from storage.shards.port import Verdict
from taskworker.errors import CallAbandoned
from taskworker.pool.fleet import WorkerFleet
from taskworker.pool.port import WorkerVolume

log = logging.getLogger(__name__)

_SETTLE_S = 0.5  # after a change, others often follow
_RETRY_S = 5.0
_BATCH = 2048
_REST_S_MAX = 2.0


@dataclass(frozen=True, slots=True)
class WorkView:
    """A piece of background work for people."""

    name: str
    state: str  # idle, waiting, running, failed
    done: int = 0
    total: int = 0
    note: str = ""
    seconds_left: float = -1.0
    next_ms: int = 0


class Mender:
    """A thread that mends whenever it is told that something changed.

    Args:
        store: the engine over ``fleet``.
        fleet: the workers.
        settled: called after a pass that left everything in its place, under one and the same attendance.
        tranquility: while users are at work, how long to rest after each object, in multiples of the time
            that it took (the word and the idea are Garage's).
        runtime: clocks.
    """

    def __init__(
        self,
        store: FileStorage,
        fleet: WorkerFleet,
        settled: Callable[[], None],
        *,
        tranquility: float,
        runtime: Runtime,
    ) -> None:
        self._store = store
        self._tranquility = tranquility
        self._fleet = fleet
        self._settled = settled
        self._runtime = runtime
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._view = WorkView("repair", "idle")
        self._thread = threading.Thread(target=self._run, name="mender", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Something changed: mend soon."""
        self._wanted.set()

    def close(self) -> None:
        """Stop at the next sign of progress, and wait for that."""
        self._closed.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def view(self) -> WorkView:
        """What it is at."""
        return self._view

    def _run(self) -> None:
        pause_s: float | None = None
        while not self._closed.is_set():
            self._wanted.wait(pause_s)
            self._wanted.clear()
            if self._closed.wait(_SETTLE_S):
                return
            if self._wanted.is_set():
                continue
            pause_s = None
            try:
                if not self.mend():
                    pause_s = _RETRY_S
            except CallAbandoned:
                return
            except StorageError as error:
                log.warning("repair failed and is tried again: %s", error)
                pause_s = _RETRY_S
                self._view = WorkView("repair", "failed", note=str(error), next_ms=self._in_ms(pause_s))
            except Exception as error:
                log.exception("repair failed unexpectedly")
                pause_s = _RETRY_S
                self._view = WorkView("repair", "failed", note=repr(error), next_ms=self._in_ms(pause_s))

    def mend(self) -> bool:
        """One pass; False if not all could be mended, for now.

        Raises:
            StorageError: it came to no end; what was made stays.
        """
        if not self._needed():
            self._view = WorkView("repair", "idle", note=self._view.note)
            return True
        attendance, mark = self._fleet.attendance(), self._fleet.mark()
        started = self._runtime.monotonic_s()
        report = self._store.repair(progress=self._progress(started), pace=self._rest)
        if report.lost_count:
            note = f"{report.lost_count} objects have too few shards left; bring lost workers back"
            self._view = WorkView("repair", "waiting", note=note, next_ms=self._in_ms(_RETRY_S))
            return False
        if self._fleet.attendance() != attendance:
            self._wanted.set()
            return True
        self._tidy()
        if self._fleet.mark() == mark:
            self._fleet.note_mended(mark)
            self._settled()
        self._view = WorkView("repair", "idle", note=_summary(report, self._runtime.monotonic_s() - started))
        return True

    def _rest(self, taken_s: float) -> None:
        """Make way for users, if there are any."""
        if self._tranquility and self._store.is_busy():
            self._closed.wait(min(_REST_S_MAX, self._tranquility * taken_s))

    def _needed(self) -> bool:
        online = [slot for slot, _ in self._fleet.online()]
        return bool(online) and not self._fleet.is_mended()

    def _progress(self, started: float) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if self._closed.is_set():
                raise CallAbandoned("the pool is shutting down")
            taken = self._runtime.monotonic_s() - started
            left = taken * (total - done) / done if done else -1.0
            self._view = WorkView("repair", "running", done, total, "looking for missing shards", left)

        return progress

    # -- shards that are in the wrong place --------------------------------------------------------

    def _tidy(self) -> None:
        for slot, volume in self._fleet.online():
            with self._fleet.guard(slot, volume):
                for batch in batched(volume.keys(), _BATCH):
                    if self._closed.is_set():
                        raise CallAbandoned("the pool is shutting down")
                    self._drop_misplaced(slot, volume, batch)

    def _drop_misplaced(self, slot: int, volume: WorkerVolume, keys: list[ShardKey]) -> None:
        """Remove those that another store holds as it should, and has in good order: it reads them first."""
        by_holder: dict[int, list[ShardKey]] = {}
        for key in keys:
            stripe = StripeKey(key[:STRIPE_KEY_BYTES])
            index = key[STRIPE_KEY_BYTES]
            holder = self._fleet.holders(stripe)[index]
            if slot not in (holder, self._fleet.targets(stripe)[index]):
                by_holder.setdefault(holder, []).append(key)
        for holder, misplaced in by_holder.items():
            proper = self._fleet.volume(holder)
            if proper is None:
                continue
            with self._fleet.guard(holder, proper):
                verdicts = list(zip(misplaced, proper.check(misplaced), strict=True))
                volume.remove([key for key, verdict in verdicts if verdict is Verdict.GOOD])
                for key, verdict in verdicts:
                    if verdict is Verdict.ROTTEN:
                        self._fleet.report("rotten", key, holder, "found while moving shards; it is made anew")

    def _in_ms(self, pause_s: float) -> int:
        return self._runtime.wall_ns() // 1_000_000 + int(pause_s * 1000)


def _summary(report: RepairReport, taken_s: float) -> str:
    if not report.shards_rebuilt:
        return f"all {report.objects_examined:,} objects have all their shards"
    megabytes = report.bytes_rebuilt / 1e6
    return f"made {report.shards_rebuilt:,} shards of {megabytes:,.1f} MB in {taken_s:.1f} s"

"""Auditing: shards chosen at random are fetched whole and compared with what their stripe decodes to.

This finds a worker that keeps nothing, or other data than it was given, even if nobody reads the files. The bytes
fetched per second are limited.
"""

from __future__ import annotations

from typing import NamedTuple

from storage import FileStorage
from storage.runtime import Runtime
from taskworker.pool.background.driver import Signals
from taskworker.reports import WorkStatus

AUDIT = "audit"
AUDIT_BYTES_PER_S = 512 * 1024
_PAUSE_S_MIN = 0.5
_PAUSE_S_MAX = 60.0
_SLOWER_BUSY = 8  # while users are busy: this costs them little, and without audits a busy pool would never find a liar


class AuditTally(NamedTuple):
    """What audits found since the pool started: shards, their bytes, and the number of wrong shards."""

    shards: int = 0
    bytes: int = 0
    wrong: int = 0


class Auditor:
    """Audits one stripe after another (a ``BackgroundWork``).

    Args:
        store: what to audit.
        bytes_per_s: the rate at which to read; 0: no audits.
        runtime: clocks and random bytes.
    """

    name = "auditor"
    failure_text = "an audit failed: %s"
    fault_text = "an audit failed unexpectedly"

    def __init__(self, store: FileStorage, *, bytes_per_s: int, runtime: Runtime) -> None:
        self._store = store
        self._readback = store.upkeep.read_back()
        self._bytes_per_s = bytes_per_s
        self._runtime = runtime
        self.signals = Signals()
        self._pause_s: float | None = _PAUSE_S_MIN if bytes_per_s else None
        self._tally = AuditTally()
        self._ended_ms = 0

    def views(self) -> list[WorkStatus]:
        """See :meth:`ShownWork.views`."""
        return [self.view()]

    def view(self) -> WorkStatus:
        """The status of auditing. Its counts start from 0 with the pool's process."""
        tally = self._tally
        note = (
            f"{tally.shards:,} shards of {tally.bytes / 1e6:,.1f} MB were fetched and compared since the pool started"
        )
        if tally.wrong:
            note += f"; {tally.wrong:,} were not what they should be"
        return WorkStatus(AUDIT, "idle", note=note if tally.shards else "", ended_ms=self._ended_ms)

    def pause_s(self) -> float | None:
        """See :meth:`BackgroundWork.pause_s`."""
        return self._pause_s

    def step(self) -> None:
        """Audit a stripe."""
        self._pause_s = self.audit_at_pace()

    def note_failure(self, error: Exception) -> None:
        """See :meth:`BackgroundWork.note_failure`."""
        self._pause_s = _PAUSE_S_MAX

    def stop(self) -> None:
        """See :meth:`BackgroundWork.stop`."""
        self.signals.close()

    def audit_at_pace(self) -> float:
        """Audit a stripe; return the number of seconds to wait before the next one."""
        busy = self._store.is_busy()
        read_s = self.audit() / self._bytes_per_s
        return min(_PAUSE_S_MAX, max(_PAUSE_S_MIN, read_s) * (_SLOWER_BUSY if busy else 1))

    def audit(self) -> int:
        """Audit a stripe chosen at random; return the number of bytes fetched."""
        if self._store.needs_rebuild:
            return 0
        stripe = self._store.upkeep.any_stripe(self._runtime.token_bytes(32))
        if stripe is None:
            return 0
        found = self._readback.audit(stripe)
        before = self._tally
        self._tally = AuditTally(before.shards + found.shards, before.bytes + found.bytes, before.wrong + found.wrong)
        self._ended_ms = self._runtime.wall_ms()
        return found.bytes

"""The progress of one pass of repair and rebalance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from storage.reports import RepairState
from taskworker.reports import WorkStatus


class RepairPass:
    """The progress of a running pass, for ``status``.

    Args:
        clock_s: monotonic seconds.

    Attributes:
        tidying: whether all possible repairs are done, and former copies are being dropped.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._began_s = clock_s()
        self._moving_s = self._began_s  # when nothing was missing any more
        self._state = RepairState(0, 0, 0, 0, 0, 0, 0, {})
        self.tidying = False

    def note(self, state: RepairState) -> None:
        """Record the current state of the pass."""
        if state.missing or not state.all_examined:
            self._moving_s = self._clock_s()
        self._state = state

    def taken_s(self) -> float:
        """Seconds since the pass began."""
        return self._clock_s() - self._began_s

    def repair(self, idle: WorkStatus) -> WorkStatus:
        """The status of its first part, repair: all objects are examined, and missing shards are rebuilt."""
        state = self._state
        if state.all_examined and state.expected and not state.missing:
            return idle
        done = state.examined - state.missing
        left_s = self.taken_s() * (state.expected - done) / done if done else None
        note = "looking for missing shards" if state.examined < state.expected else "rebuilding missing shards"
        return replace(
            idle, state="running", done=done, total=state.expected, note=note, seconds_left=left_s, queue=state.missing
        )

    def rebalance(self, idle: WorkStatus) -> WorkStatus:
        """The status of its second part, rebalance: misplaced shards are moved to where they belong."""
        state = self._state
        if self.tidying:
            return replace(idle, state="running", done=state.moved, total=state.moved, note="dropping former copies")
        if not state.misplaced:
            return idle
        total = state.moved + state.misplaced
        if state.missing or not state.all_examined:
            return replace(
                idle, state="waiting", total=total, done=state.moved, note="waits for repair", queue=state.misplaced
            )
        left_s = (self._clock_s() - self._moving_s) * state.misplaced / state.moved if state.moved else None
        return replace(
            idle,
            state="running",
            done=state.moved,
            total=total,
            note="moving shards to their places",
            seconds_left=left_s,
            queue=state.misplaced,
        )

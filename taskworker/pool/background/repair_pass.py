"""How far a pass of repair and rebalance is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from storage.reports import RepairState
from taskworker.reports import WorkStatus


class RepairPass:
    """A pass under way, as it looks from outside.

    Args:
        clock_s: monotonic seconds.

    Attributes:
        tidying: whether all that can be made has been, and former copies are being dropped.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._began_s = clock_s()
        self._moving_s = self._began_s  # since when nothing is missing any more
        self._state = RepairState(0, 0, 0, 0, 0, 0, 0, {})
        self.tidying = False

    def note(self, state: RepairState) -> None:
        """How far it is."""
        if state.missing or not state.all_examined:
            self._moving_s = self._clock_s()
        self._state = state

    def taken_s(self) -> float:
        """Since it began."""
        return self._clock_s() - self._began_s

    def repair(self, idle: WorkStatus) -> WorkStatus:
        """Its first part: all objects are looked at, and what is missing is made."""
        state = self._state
        if state.all_examined and state.expected and not state.missing:
            return idle
        done = state.examined - state.missing
        left_s = self.taken_s() * (state.expected - done) / done if done else None
        note = "looking for missing shards" if state.examined < state.expected else "making missing shards"
        return replace(
            idle, state="running", done=done, total=state.expected, note=note, seconds_left=left_s, queue=state.missing
        )

    def rebalance(self, idle: WorkStatus) -> WorkStatus:
        """Its second part: what is in the wrong place is brought to its own."""
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

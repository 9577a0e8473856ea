"""The state of a call's search for a worker: which are full, which cannot run it and why, and when to give up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from taskworker.calls.labels import text_of

WAIT_FOR_WORKERS_S = 10.0
"""Seconds to wait for a worker that can run a call."""
_OF_DEADLINE = 0.75
"""The wait takes at most this part of the call's time, so that the reason still reaches the caller in time."""
_LOSSES_MAX = 10
"""Give up after this many workers were lost while running the call, as the call may be the cause."""
_AGAIN_S = 0.1
_AGAIN_S_MAX = 2.0
_NAMED_MAX = 8


class Tried:
    """The workers that one call has tried.

    Args:
        timeout_s: how long the call may take; None: for ever.
        clock_s: monotonic seconds.
    """

    def __init__(self, timeout_s: float | None, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._wait_s = WAIT_FOR_WORKERS_S if timeout_s is None else min(WAIT_FOR_WORKERS_S, _OF_DEADLINE * timeout_s)
        self._skipped: set[str] = set()
        self._full: set[str] = set()
        self._none_since: float | None = None
        self._unable: dict[str, str] = {}
        self._again: dict[str, tuple[float, float]] = {}  # of unable workers: when to retry, and the last pause
        self._lost: dict[str, str] = {}
        self._losses = 0

    def fresh(self, able: list[str]) -> list[str]:
        """The workers among ``able`` to try in this round."""
        now = self._clock_s()
        return [
            one for one in able if one not in self._skipped | self._full and self._again.get(one, (0.0, 0.0))[0] <= now
        ]

    def full(self, worker: str) -> None:
        """Note that a worker has no free place now; one will become free."""
        self._full.add(worker)

    def unable(self, worker: str, reason: str) -> None:
        """Note that a worker reported that it cannot run the call."""
        pause_s = min(_AGAIN_S_MAX, 2 * self._again.get(worker, (0.0, _AGAIN_S / 2))[1])
        self._again[worker] = self._clock_s() + pause_s, pause_s
        self._unable[worker] = reason

    def lost(self, worker: str, *, may_have_run: bool) -> None:
        """Note that a worker was lost during the call or before it."""
        self._skipped.add(worker)
        self._lost[worker] = "was lost"
        if may_have_run:
            self._losses += 1
            self._none_since = None

    @property
    def too_many_lost(self) -> bool:
        """Whether the call should not be run again."""
        return self._losses >= _LOSSES_MAX

    def look_again(self) -> None:
        """Reconsider workers that were full, as places may have become free."""
        self._full.clear()

    def again(self) -> None:
        """Reconsider lost workers after a pause, as they may be back."""
        self._skipped.clear()

    @property
    def in_vain(self) -> bool:
        """Whether waiting for a free place is pointless, as no able worker was full in this round."""
        return not self._full

    def is_enough(self) -> bool:
        """Whether the search has been in vain for too long; called at the end of each round."""
        if not self.in_vain:
            self._none_since = None
            return False
        self._none_since = self._none_since or self._clock_s()
        return self._clock_s() - self._none_since > self._wait_s

    def told(self, name: str, needs: Mapping[str, str], obstacles: Mapping[str, str]) -> str:
        """The text that says why a function cannot be called, and what to do.

        Args:
            name: name of the function.
            needs: the labels that it needs.
            obstacles: why live workers cannot run it, by worker.
        """
        reasons = {**self._lost, **obstacles, **self._unable}
        some = [f"{worker} {reason}" for worker, reason in sorted(reasons.items())[:_NAMED_MAX]]
        if len(reasons) > _NAMED_MAX:
            some.append(f"{len(reasons) - _NAMED_MAX} more cannot, either")
        needed = f", which needs one with {text_of(needs)}" if needs else ""
        options = "".join(f" --label {key}={value}" for key, value in sorted(needs.items()))
        return (
            f"no worker can run function {name}{needed}: "
            + ("; ".join(some) or "no worker runs functions")
            + f"; start one that can with `taskworker worker{options}`, or try again later"
        )

"""Pauses before failed volumes and workers are tried again."""

from __future__ import annotations

from storage.system.backoff import Backoff


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def until_due(self, backoff: Backoff) -> float:
        """Return the seconds until the next attempt is due."""
        began_s = self.now_s
        while not backoff.due():
            self.now_s += 0.125
        return self.now_s - began_s


def test_pauses_double_up_to_the_last() -> None:
    clock = Clock()
    backoff = Backoff(first_s=0.5, last_s=4.0, clock_s=clock)
    assert backoff.due()
    pauses = []
    for _ in range(6):
        backoff.failed()
        pauses.append(clock.until_due(backoff))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_what_fails_again_right_after_it_went_well_waits_longer_each_time() -> None:
    clock = Clock()
    backoff = Backoff(first_s=0.5, last_s=4.0, clock_s=clock)
    pauses = []
    for _ in range(5):
        backoff.relapsed()
        pauses.append(clock.until_due(backoff))
        backoff.succeeded()
        clock.now_s += 1.0
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0]


def test_what_went_well_for_long_is_tried_at_once() -> None:
    clock = Clock()
    backoff = Backoff(first_s=0.5, last_s=4.0, clock_s=clock)
    for _ in range(4):
        backoff.failed()
    backoff.succeeded()
    clock.now_s += 3600.0
    backoff.relapsed()
    assert backoff.due()
    backoff.failed()
    assert clock.until_due(backoff) == 0.5


def test_failures_long_ago_make_no_pause_longer() -> None:
    clock = Clock()
    backoff = Backoff(first_s=0.5, last_s=4.0, clock_s=clock)
    for _ in range(4):
        backoff.failed()
    backoff.succeeded()
    clock.now_s += 3600.0
    backoff.failed()
    assert clock.until_due(backoff) == 0.5

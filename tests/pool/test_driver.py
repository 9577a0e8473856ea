"""The driver of background work: every piece goes on after failures, is woken, and ends when it is told to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from storage.errors import StorageError
from taskworker.errors import CallAbandoned
from taskworker.pool.background.driver import Signals, WorkDriver

WITHIN_S = 60.0


class Work:
    """Takes the steps that it is given, one after another; after the last it waits to be wanted."""

    failure_text = "work failed: %s"
    fault_text = "work failed unexpectedly"

    def __init__(self, name: str, *steps: Callable[[], None], pause_s: float | None = 0.0) -> None:
        self.name = name
        self.signals = Signals()
        self.failures: list[Exception] = []
        self.done = threading.Event()
        self._pause_s = pause_s
        self._steps = list(steps)

    def pause_s(self) -> float | None:
        return self._pause_s

    def step(self) -> None:
        step = self._steps.pop(0) if self._steps else lambda: None
        if not self._steps:
            self._pause_s = None
            self.done.set()
        step()

    def note_failure(self, error: Exception) -> None:
        self.failures.append(error)

    def stop(self) -> None:
        self.signals.close()


def raising(error: Exception) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def test_a_step_that_fails_is_told_of_and_followed_by_the_next(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [StorageError("full"), ValueError("a bug"), CallAbandoned("elsewhere")]
    work = Work("work", *map(raising, errors), lambda: None)
    driver = WorkDriver([work])
    with caplog.at_level(logging.WARNING):
        driver.start()
        assert work.done.wait(WITHIN_S)
        driver.close()
    assert work.failures == errors
    assert [record.getMessage() for record in caplog.records] == [
        "work failed: full",
        "work failed unexpectedly",
        "work failed: elsewhere",
    ]


def test_work_that_waits_for_nothing_is_done_once_it_is_wanted() -> None:
    work = Work("work", pause_s=None)
    driver = WorkDriver([work])
    driver.start()
    work.signals.wanted.set()
    assert work.done.wait(WITHIN_S)
    driver.close()


def test_a_step_that_takes_long_ends_when_it_is_told_to() -> None:
    begun = threading.Event()

    def long() -> None:
        begun.set()
        while True:
            work.signals.check_open()

    work = Work("work", long)
    driver = WorkDriver([work])
    driver.start()
    assert begun.wait(WITHIN_S)
    driver.close()
    assert not work.failures


def test_work_ends_in_its_order() -> None:
    ended: list[str] = []

    class Ending(Work):
        def stop(self) -> None:
            ended.append(self.name)
            super().stop()

    driver = WorkDriver([Ending("first", pause_s=None), Ending("second", pause_s=None)])
    driver.start()
    driver.close()
    driver.close()  # once more does no harm
    assert ended == ["first", "second"] * 2

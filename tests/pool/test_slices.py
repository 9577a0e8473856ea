"""The time slices of a pool's threads, set in threads of their own, so that those of the tests stay as they are."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import pytest

from taskworker.pool.slices import PoolRuntime, slice_ns, take_short_slices

T = TypeVar("T")

_SINCE = (6, 12)


def _in_thread(work: Callable[[], T]) -> T:
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return done.result()


@pytest.fixture(autouse=True)
def kernel() -> None:
    if tuple(map(int, platform.release().split(".")[:2])) < _SINCE:
        pytest.skip(f"Linux {platform.release()} has no time slices that can be set")


def test_threads_that_are_started_afterwards_have_short_slices_and_others_do_not() -> None:
    before = slice_ns()

    def work() -> tuple[int, int]:
        take_short_slices()
        return slice_ns(), _in_thread(slice_ns)

    own, inherited = _in_thread(work)
    assert own == inherited
    assert 0 < own < 1_000_000
    assert slice_ns() == before


def test_threads_for_large_amounts_of_data_keep_the_usual_slices() -> None:
    before = slice_ns()

    def work() -> tuple[int, int, int]:
        take_short_slices()
        runtime = PoolRuntime()
        with runtime.executor(1, "store-chunks") as bulk, runtime.executor(1, "commit-many") as small:
            return slice_ns(), bulk.submit(slice_ns).result(), small.submit(slice_ns).result()

    short, bulk, small = _in_thread(work)
    assert bulk == before
    assert small == short


def test_the_niceness_stays_as_it_is() -> None:
    def work() -> tuple[int, int]:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 11)
        take_short_slices()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getscheduler(0)

    assert _in_thread(work) == (11, os.SCHED_OTHER)


def test_a_policy_without_slices_is_left_alone() -> None:
    def work() -> int:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        take_short_slices()
        return os.sched_getscheduler(0)

    assert _in_thread(work) == os.SCHED_IDLE

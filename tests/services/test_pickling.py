"""Errors of the family go through pickle whole, as from a worker process to the one that waits for it."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import storage
import taskworker
from storage import ConflictError, DataLossError, FileNotFound, ShardsUnavailable, StorageError
from taskworker.sandbox.errors import CallCrashed, CallFailed, CallRefused, LimitExceeded, SandboxError
from taskworker.sandbox.frames import Cause


def _families() -> Iterator[type[Exception]]:
    """Every class of error that the packages define, once all their modules are loaded."""
    for package in (storage, taskworker):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    seen: set[type[Exception]] = set()
    waiting: list[type[Exception]] = [StorageError, SandboxError]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            if cls not in seen:
                seen.add(cls)
                waiting.append(cls)
    return (cls for cls in seen if cls.__module__.split(".")[0] in ("storage", "taskworker"))


def test_every_class_of_error() -> None:
    checked = 0
    for cls in _families():
        error = cls.__new__(cls, "what was wrong")
        error.__dict__["detail"] = 7
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(again), again.args, vars(again)) == (cls, error.args, vars(error))
        checked += 1
    assert checked > 40


@pytest.mark.parametrize(
    "error",
    [
        FileNotFound("no file"),
        ConflictError("moved on", head="aa", base="bb"),
        DataLossError("cc" * 32, 3, 4, filename="f", file_id="dd"),
        ShardsUnavailable("cc" * 32, 3, 4, away=1, causes=("w1 is away",)),
        LimitExceeded("memory", 1 << 20),
        CallCrashed("ended", signal=9),
        CallFailed("ValueError", "bad"),
        CallRefused(Cause.EXCEPTION, "ValueError", "bad"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_they_say_and_hold(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def _conflict() -> None:
    raise ConflictError("moved on", head="aa", base="bb")


def test_through_a_process_pool() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(StorageError) as raised:
        pool.submit(_conflict).result()
    assert isinstance(raised.value, ConflictError)
    assert (raised.value.head, raised.value.base) == ("aa", "bb")

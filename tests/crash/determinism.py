"""Everything random or concurrent in the engine, driven by one seed, so that a run can be had again."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from types import ModuleType
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

_TICK_NS = 100_000_000


class Clock:
    """Stands in for the module ``time`` in the engine: each look at it is 0.1 s later."""

    def __init__(self, start_s: int) -> None:
        self._now_ns = start_s * 1_000_000_000

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ns += int(seconds * 1e9)

    def time_ns(self) -> int:
        self._now_ns += _TICK_NS
        return self._now_ns

    def time(self) -> float:
        return self.time_ns() / 1e9

    def monotonic(self) -> float:
        return self.time()

    def perf_counter(self) -> float:
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)


class Secrets:
    """Stands in for the module ``secrets``."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def token_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def token_hex(self, count: int) -> str:
        return self._rng.randbytes(count).hex()


class InlineExecutor(Executor):
    """An executor that does the work at once, in the caller's thread."""

    def __init__(self, max_workers: int = 1, thread_name_prefix: str = "") -> None:
        pass

    def submit(self, work: Callable[..., T], /, *arguments: Any, **keywords: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(work(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def deterministic(rng: Random, clock: Clock) -> Iterator[None]:
    """Inside, the engine does one thing at a time, and takes its clock and its random numbers from here."""
    stand_ins = [(time, clock), (secrets, Secrets(rng)), (ThreadPoolExecutor, InlineExecutor)]
    with pytest.MonkeyPatch.context() as patch:
        for module in _engine_modules():
            for name, value in list(vars(module).items()):
                for real, stand_in in stand_ins:
                    if value is real:
                        patch.setattr(module, name, stand_in)
        yield


def _engine_modules() -> list[ModuleType]:
    return [module for name, module in sys.modules.items() if name.startswith("storage.")]

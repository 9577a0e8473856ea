"""Thousands of calls that end in every way a call can: what they leave behind in the pool and its workers."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from storage.errors import InvalidArgument, StorageError
from taskworker.sandbox.host import SPARES_IDLE_S
from tests.functions.footprints import Footprint, grown
from tests.functions.processes import USER, WAIT_S, FunctionPool
from tests.functions.soak_calls import Callers
from tests.functions.soaked import COMPILED, FUNCTIONS, MODULE, VERSIONED

SETTLE_S = 2.0
PROCESSES_WARM = 2
"""Of a function at rest: its init and its zygote."""
PROCESSES_BESIDE = 3
"""Of a worker: bubblewrap, the base, and the lean one."""


@dataclass(slots=True)
class Soak:
    """What was seen: outcomes by kind of call, looks at what processes hold, by their names, and what must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    looks: list[dict[str, Footprint]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    calling_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        calls = self.outcomes.total()
        return [
            f"{calls} calls in {self.calling_s:.0f} s, {calls / max(self.calling_s, 0.001):.1f} a second: {outcomes}",
            *self.notes,
            *(f"{name}: {' then '.join(str(look[name]) for look in self.looks)}" for name in self._processes()),
            *self.violations,
        ]

    def _processes(self) -> list[str]:
        return list(self.looks[0]) if self.looks else []

    def judge(self) -> None:
        """Compare what there was in the end with what there was before; all looks are at processes at rest.

        With more than one: an allocator may hold what was freed until after the first look.
        """
        for before in self.looks[:-1]:
            self.violations += grown(before, self.looks[-1])


def soak(directory: Path, calls: int, seed: int, *, at_rest: bool = True, compiled: bool = True) -> Soak:
    """So many calls.

    Args:
        directory: for all data.
        calls: how many; after a tenth of them, half and all there is a look at what the processes hold.
        seed: of which and with what.
        at_rest: whether those looks wait until the functions' spare processes are let go, a minute; else there
            is no look but at what is left in the end.
        compiled: whether a function with numpy and Pillow is one of them, which takes a while to deploy.
    """
    told = Soak()
    (directory / "app.py").write_text(MODULE)
    with FunctionPool(directory) as pool:
        for name, options in FUNCTIONS.items():
            pool.deploy(name, f"app:{name}", directory, **options)
        functions = [*FUNCTIONS, VERSIONED, *(_compiled(pool, told) if compiled else ())]
        pool.await_workers("keeps", 3)
        callers = Callers(pool, compiled="compiled" in functions)
        try:
            if at_rest:
                _serve_everywhere(pool, functions)
            done = 0
            for number, until in enumerate((calls // 10, calls // 2, calls)):
                told.calling_s += _timed(callers, until - done, seed + number)
                done = until
                if at_rest:
                    told.looks.append(_at_rest(pool, functions, told))
        finally:
            callers.close()
        told.outcomes = callers.outcomes
        told.violations += callers.violations
        told.judge()
        _require_all_alive(pool, told)
        _require_nothing_left(pool, told)
    return told


def _timed(callers: Callers, count: int, seed: int) -> float:
    """How long so many calls took, in seconds."""
    began = time.monotonic()
    callers.run(count, seed)
    return time.monotonic() - began


def _compiled(pool: FunctionPool, told: Soak) -> list[str]:
    """Deploy a function with numpy and Pillow, if they are to be had; its name."""
    (pool.directory / "compiled.py").write_text(COMPILED)
    requirements = pool.directory / "compiled.txt"
    requirements.write_text("numpy\npillow\n")
    try:
        pool.client.deploy(
            "compiled", "compiled:compiled", user_id=USER, directory=pool.directory, requirements=requirements
        )
    except InvalidArgument as error:
        if "No matching distribution" not in str(error):
            raise
        told.notes.append("no package index was reached: no calls of a function with compiled packages")
        return []
    return ["compiled"]


def _at_rest(pool: FunctionPool, functions: list[str], told: Soak) -> dict[str, Footprint]:
    """What all processes hold once each worker has served each function, and what waits for calls has been let go.

    What a worker holds depends on how many functions are warm there: so, all of them, early as late.
    """
    wanted = len(functions) * PROCESSES_WARM + PROCESSES_BESIDE
    give_up = time.monotonic() + 3 * SPARES_IDLE_S + WAIT_S
    _serve_everywhere(pool, functions)
    while set((counts := _processes(pool)).values()) != {wanted}:
        if time.monotonic() > give_up:
            told.violations.append(f"workers have {counts} processes below them at rest, {wanted} are wanted")
            break
        if min(counts.values()) < wanted:  # what was warm was a version that had been replaced, and ended since
            _serve_everywhere(pool, functions)
        time.sleep(0.5)
    time.sleep(SETTLE_S)
    processes = {"pool": pool.pool_process, **pool.workers}
    return {name: Footprint.of(psutil.Process(one.pid)) for name, one in processes.items()}


def _processes(pool: FunctionPool) -> dict[str, int]:
    """How many processes there are below each worker."""
    return {name: len(worker.descendants()) for name, worker in pool.workers.items()}


def _serve_everywhere(pool: FunctionPool, functions: list[str]) -> None:
    """Call all functions, as if by users of whom there is no process, until all workers have them warm."""
    for function in functions:
        give_up = time.monotonic() + WAIT_S
        number = 0
        while len({warm.worker_id for warm in pool.status(function).warm}) < len(pool.workers):
            assert time.monotonic() < give_up, f"{function} is not warm on all workers"
            number += 1
            with contextlib.suppress(StorageError):  # it lacks arguments, or does what it is there for
                pool.client.call(function, user_id=f"visitor {number}", timeout_s=1.0)


def _require_all_alive(pool: FunctionPool, told: Soak) -> None:
    """No call ends a worker, or the pool."""
    for name, process in {"pool": pool.pool_process, **pool.workers}.items():
        if not process.alive:
            last = (pool.directory / f"{name}.log").read_text()[-2_000:]
            told.violations.append(f"{name} ended by itself; the last it said: {last}")


def _require_nothing_left(pool: FunctionPool, told: Soak) -> None:
    """Stopped workers leave no process behind."""
    for name in list(pool.workers):
        worker = pool.workers.pop(name)
        below = worker.descendants()
        worker.stop()
        _, alive = psutil.wait_procs(below, timeout=10)
        if alive:
            told.violations.append(f"{len(alive)} processes outlive {name}: {alive}")

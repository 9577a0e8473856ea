"""Workers are SIGKILLed under sixteen callers: what must be answered is, and what must not run twice does not."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from storage.errors import StorageError
from taskworker.errors import CallUncertain
from tests.functions.processes import USER, WAIT_S, FunctionPool

CALLERS = 16
CALLS_EACH = 6
ENDED_S = 10.0
MODULE = """
import time
import uuid

from taskworker.inside import worker


def square(number: int, pause_s: float) -> int:
    time.sleep(pause_s)
    return number * number


def leaves_a_mark(name: str, pause_s: float) -> str:
    time.sleep(pause_s)
    worker.storage.push(uuid.uuid4().bytes, name)  # each run makes a version of its own
    time.sleep(pause_s)
    return name
"""


@dataclass(slots=True)
class Killing:
    """What became of all calls.

    Attributes:
        calls: how many were made.
        moved: of them, those taken to another worker.
        uncertain: those said to have run, or not.
        marks: how many calls that must not run twice left 0, 1, ... marks.
        violations: what must not be.
    """

    calls: int = 0
    moved: int = 0
    uncertain: int = 0
    marks: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        marks = ", ".join(f"{calls} left {count}" for count, calls in sorted(self.marks.items()))
        return [
            f"{self.calls} calls, {self.moved} moved to another worker, {self.uncertain} uncertain",
            f"marks of calls that must not run twice: {marks}",
            *self.violations,
        ]


class _Round:
    """Callers under whom one worker is killed."""

    def __init__(self, pool: FunctionPool, number: int, chance: random.Random, told: Killing) -> None:
        self._pool = pool
        self._number = number
        self._chance = chance
        self._told = told
        self._lock = threading.Lock()
        self._uncertain: set[str] = set()
        self._marked: list[str] = []

    def run(self) -> None:
        victim = self._chance.choice(sorted(self._pool.workers))
        delay_s = self._chance.uniform(0.05, 0.6)
        plans = [(caller, self._chance.getrandbits(32)) for caller in range(CALLERS)]
        with ThreadPoolExecutor(CALLERS) as callers:
            calling = [callers.submit(self._caller, *plan) for plan in plans]
            time.sleep(delay_s)
            below = self._pool.workers[victim].descendants()
            self._pool.workers.pop(victim).kill()
            for one in calling:
                one.result()
        self._require_ended(victim, below)
        self._pool.start_worker(victim)
        for function in ("square", "leaves_a_mark"):
            self._pool.await_workers(function, 3)
        self._pool.await_whole()  # else the next loss could be one too many for the store
        self._count_marks()

    def _caller(self, caller: int, seed: int) -> None:
        chance = random.Random(seed)
        for index in range(CALLS_EACH):
            pause_s = chance.uniform(0.0, 0.06)
            if chance.random() < 0.5:
                self._square(caller * 1000 + index, pause_s)
            else:
                self._mark(f"mark/{self._number}/{caller}/{index}", pause_s)

    def _square(self, number: int, pause_s: float) -> None:
        try:
            answer = self._pool.client.call("square", [number, pause_s], user_id=USER, timeout_s=WAIT_S)
        except StorageError as error:
            self._note(f"an idempotent call was not answered: {type(error).__name__}: {error}")
        else:
            self._note(None if answer == number * number else f"{number} squared is {answer}?")

    def _mark(self, name: str, pause_s: float) -> None:
        problem = None
        try:
            answer = self._pool.client.call("leaves_a_mark", [name, pause_s], user_id=USER, timeout_s=WAIT_S)
            problem = None if answer == name else f"{name} answered {answer!r}"
        except CallUncertain:
            with self._lock:
                self._uncertain.add(name)
        except StorageError as error:
            problem = f"a call that must not run twice ended otherwise: {type(error).__name__}: {error}"
        with self._lock:
            self._marked.append(name)
        self._note(problem)

    def _note(self, problem: str | None) -> None:
        with self._lock:
            self._told.calls += 1
            if problem is not None:
                self._told.violations.append(f"round {self._number}: {problem}")

    def _count_marks(self) -> None:
        self._told.uncertain += len(self._uncertain)
        found = {file.filename: file for file in self._pool.client.iter_files(user_id=USER, prefix="mark/")}
        for name in self._marked:
            file = found.get(name)
            count = len(list(self._pool.client.history(file.file_id, user_id=USER))) if file is not None else 0
            self._told.marks[count] += 1
            if count > 1 or (count == 0 and name not in self._uncertain):
                self._told.violations.append(f"round {self._number}: {name} left {count} marks")
            if file is not None:
                self._pool.client.delete(file.file_id, user_id=USER)

    def _require_ended(self, victim: str, below: list[psutil.Process]) -> None:
        _, alive = psutil.wait_procs(below, timeout=ENDED_S)
        if alive:
            self._told.violations.append(f"round {self._number}: {len(alive)} processes outlive {victim}: {alive}")


def kill_workers(directory: Path, rounds: int, seed: int) -> Killing:
    """So many rounds, each of which kills a worker."""
    chance = random.Random(seed)
    told = Killing()
    (directory / "app.py").write_text(MODULE)
    with FunctionPool(directory) as pool:
        pool.deploy("square", "app:square", directory)
        pool.deploy("leaves_a_mark", "app:leaves_a_mark", directory, idempotent=False)
        pool.await_workers("leaves_a_mark", 3)
        for number in range(rounds):
            _Round(pool, number, chance, told).run()
        told.moved = sum(one.moved for one in pool.functions.functions())
    return told

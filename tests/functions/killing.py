"""Workers are SIGKILLed under sixteen callers: what must be answered is, and what must not run twice does not."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from storage.errors import StorageError
from taskworker.errors import CallUncertain
from tests.functions.processes import USER, WAIT_S, FunctionPool

CALLERS = 16
CALLS_EACH = 6
ENDED_S = 10.0
MODULE = """
import asyncio
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


def counts(to: int, pause_s: float):
    for number in range(to):
        time.sleep(pause_s)
        yield number


async def asks(to: int, pause_s: float) -> int:
    return sum(await asyncio.gather(*(worker.acall("square", number, pause_s) for number in range(to))))


def remembers(pause_s: float) -> list[str]:
    global users
    users = {*globals().get("users", ()), worker.caller.user_id}
    time.sleep(pause_s)
    return sorted(users)


def makes(name: str, pause_s: float):
    with open("made", "wb") as file:
        file.write(name.encode() * 1000)
    time.sleep(pause_s)
    return worker.result_file("made", name)


def configured(pause_s: float) -> int:
    time.sleep(pause_s)
    return int(worker.config["round"])
"""
FUNCTIONS: dict[str, dict[str, object]] = {
    "square": {},
    "leaves_a_mark": {"idempotent": False},
    "counts": {},
    "asks": {},
    "remembers": {"isolation": "user"},
    "makes": {},
    "configured": {"config": {"round": "-1"}},
}


@dataclass(slots=True)
class Killing:
    """What became of all calls.

    Attributes:
        calls: how many were made.
        moved: of them, those taken to another worker.
        uncertain: those said to have run, or not; of streams, those whose worker was lost after it gave something.
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
    """Callers under whom one worker is killed, while a function is deployed."""

    def __init__(self, pool: FunctionPool, number: int, chance: random.Random, told: Killing) -> None:
        self._pool = pool
        self._number = number
        self._chance = chance
        self._told = told
        self._lock = threading.Lock()
        self._uncertain: set[str] = set()
        self._marked: list[str] = []
        self._kinds = {
            self._square: 6,
            self._mark: 6,
            self._stream: 2,
            self._asks: 2,
            self._remembers: 2,
            self._makes: 1,
            self._configured: 1,
        }

    def run(self) -> None:
        victim = self._chance.choice(sorted(self._pool.workers))
        delay_s = self._chance.uniform(0.05, 0.6)
        plans = [(caller, self._chance.getrandbits(32)) for caller in range(CALLERS)]
        with ThreadPoolExecutor(CALLERS + 1) as callers:
            calling = [callers.submit(self._caller, *plan) for plan in plans]
            calling.append(callers.submit(self._deploy))
            time.sleep(delay_s)
            below = self._pool.workers[victim].descendants()
            self._pool.workers.pop(victim).kill()
            for one in calling:
                one.result()
        self._require_ended(victim, below)
        self._pool.start_worker(victim)
        for function in FUNCTIONS:
            self._pool.await_workers(function, 3)
        self._pool.await_whole()  # else the next loss could be one too many for the store
        self._require_deployed()
        self._count_marks()

    def _caller(self, caller: int, seed: int) -> None:
        chance = random.Random(seed)
        kinds = chance.choices(list(self._kinds), list(self._kinds.values()), k=CALLS_EACH)
        for index, kind in enumerate(kinds):
            kind(caller * 1000 + index, chance.uniform(0.0, 0.06))

    def _answer(self, what: str, call: Callable[[], object]) -> tuple[object, str | None]:
        """What a call that may run twice came to, and what was wrong with that."""
        try:
            return call(), None
        except StorageError as error:
            return None, f"{what} was not answered: {type(error).__name__}: {error}"

    def _require(self, what: str, wanted: object, call: Callable[[], object]) -> None:
        """A call that may run twice is answered."""
        answer, problem = self._answer(what, call)
        if problem is None and answer != wanted:
            problem = f"{what} answered {answer!r}"
        self._note(problem)

    def _call(self, name: str, *args: object, user_id: str = USER) -> Callable[[], Any]:
        return functools.partial(self._pool.client.call, name, args, user_id=user_id, timeout_s=WAIT_S)

    def _square(self, number: int, pause_s: float) -> None:
        self._require("a square", number * number, self._call("square", number, pause_s))

    def _asks(self, number: int, pause_s: float) -> None:
        count = number % 7
        wanted = sum(each * each for each in range(count))
        self._require("a function that calls others", wanted, self._call("asks", count, pause_s))

    def _remembers(self, number: int, pause_s: float) -> None:
        user = f"user-{number % 4}"
        self._require("a kept process", [user], self._call("remembers", pause_s, user_id=user))

    def _makes(self, number: int, pause_s: float) -> None:
        name = f"made/{self._number}/{number}"
        file, problem = self._answer("a maker of a file", self._call("makes", name, pause_s))
        if isinstance(file, dict):
            content, problem = self._answer(
                "the file of a call",
                lambda: self._pool.client.get(file["file_id"], user_id=USER, version_id=file["version_id"]),
            )
            if problem is None and content != name.encode() * 1000:
                problem = f"the file of a call has other content than {name}"
        self._note(problem)

    def _configured(self, _number: int, pause_s: float) -> None:
        answer, problem = self._answer("a function that is deployed meanwhile", self._call("configured", pause_s))
        if problem is None and answer not in (self._number - 1, self._number):
            problem = f"in place of the versions of this round and the one before, {answer!r} was called"
        self._note(problem)

    def _stream(self, number: int, pause_s: float) -> None:
        count = number % 10
        told: list[object] = []
        problem = None
        items = self._pool.client.stream("counts", [count, pause_s], user_id=USER, timeout_s=WAIT_S)
        try:
            told.extend(items)
        except CallUncertain as error:
            problem = None if told else f"a stream that gave nothing was not begun again: {error}"
            with self._lock:
                self._told.uncertain += 1
        except StorageError as error:
            problem = f"a stream ended otherwise: {type(error).__name__}: {error}"
        else:
            problem = None if len(told) == count else f"a stream of {count} items ended after {len(told)}"
        if told != list(range(len(told))):
            problem = f"a stream gave {told}"
        self._note(problem)

    def _mark(self, number: int, pause_s: float) -> None:
        name = f"mark/{self._number}/{number}"
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

    def _deploy(self) -> None:
        config = {"round": str(self._number)}
        deploying = functools.partial(self._pool.deploy, "configured", "app:configured", self._pool.directory)
        self._note(self._answer("a deployment", lambda: deploying(config=config))[1])

    def _require_deployed(self) -> None:
        self._require("the version that was deployed", self._number, self._call("configured", 0.0))

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
        for name, options in FUNCTIONS.items():
            pool.deploy(name, f"app:{name}", directory, **options)
        pool.await_workers("configured", 3)
        for number in range(rounds):
            _Round(pool, number, chance, told).run()
        told.moved = sum(one.moved for one in pool.functions.functions())
    return told

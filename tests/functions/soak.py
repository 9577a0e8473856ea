"""Thousands of calls that end in every way a call can: what they leave behind in the pool and its workers."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from storage.errors import InvalidArgument, StorageError
from taskworker.client.endpoint import CHANNEL_OPTIONS, target_of
from taskworker.errors import (
    CallAbandoned,
    DeadlineExceeded,
    FunctionBusy,
    FunctionCrashed,
    FunctionFailed,
    FunctionLimitExceeded,
    FunctionNotFound,
)
from taskworker.sandbox import Limits
from taskworker.sandbox.host import SPARES_IDLE_S
from taskworker.sandbox.inside.init import SCRATCH
from taskworker.taskworker_pb2 import FunctionCallRequest
from taskworker.taskworker_pb2_grpc import RPCServiceStub
from taskworker.wire import status
from tests.functions.processes import USER, WAIT_S, FunctionPool

CALLERS = 8
SETTLE_S = 2.0
PROCESSES_WARM = 2
"""Of a function at rest: its init and its zygote."""
PROCESSES_BESIDE = 4
"""Of a worker: bubblewrap and the base; some that are just ending."""
GROWTH_MAX = 0.10
GROWTH_BYTES_MAX = 6 << 20
"""What an allocator may keep beyond what is in use, besides."""
DESCRIPTORS_MORE = 16
MODULE = """
import asyncio
import sys
import threading
import time

from taskworker.inside import worker


def add(a: int, b: int = 1) -> int:
    return a + b


def echo(*args, **kwargs):
    return [args, kwargs]


async def later(value):
    await asyncio.sleep(0.002)
    return value


def raises(text: str):
    raise ValueError(text)


def greedy():
    return len(bytearray(1 << 30))


def forever():
    while True:
        time.sleep(1)


def huge():
    return "x" * (2 << 20)


def chatty():
    for number in range(2_000):
        print(number, "x" * 500)
    sys.stderr.write("no end of line")


def crowd():
    for _ in range(100):
        threading.Thread(target=time.sleep, args=(30,)).start()
    time.sleep(30)


def crashes():
    sys.modules["os"]._exit(3)


def nameless():
    return object()


def twice(a: int) -> int:
    return worker.call("add", a, a)


def keeps(name: str) -> int:
    worker.storage.push(b"kept", name)
    return len(worker.storage.get(name))


def fans(count: int) -> int:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as threads:
        return sum(threads.map(lambda number: worker.call("add", number, 1), range(count)))


async def gathers(count: int) -> int:
    return sum(await asyncio.gather(*(worker.acall("add", number, 1) for number in range(count))))


def counts(to: int, size: int = 0):
    for number in range(to):
        yield [number, "x" * size]


def writes(name: str, offset: int) -> int:
    worker.storage.push(b"." * 1000, name)
    worker.storage.write(name, b"written", offset)
    written = worker.storage.get(name)
    worker.storage.delete(name)
    return written.index(b"written")


def remembers() -> list[str]:
    global users
    users = {*globals().get("users", ()), worker.caller.user_id}
    return sorted(users)


def litters(how: str) -> bool:
    global littered
    before, littered = globals().get("littered", False), True
    if how == "thread":
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    elif how == "memory":
        worker.kept = bytearray(200 << 20)
    elif how == "crash":
        sys.modules["os"]._exit(3)
    return before
"""
KEPT = {"remembers", "litters"}
"""Deployed with ``isolation="user"``; for less long than the look at what is left waits."""
KEPT_S = 15.0
FUNCTIONS: dict[str, Limits] = {
    "add": Limits(),
    "echo": Limits(),
    "later": Limits(),
    "raises": Limits(),
    "greedy": Limits(memory_bytes=64 << 20),
    "forever": Limits(wall_s=0.2),
    "huge": Limits(result_bytes=1 << 20),
    "chatty": Limits(output_bytes=64 << 10),
    "crowd": Limits(threads=8),
    "crashes": Limits(),
    "nameless": Limits(),
    "twice": Limits(),
    "keeps": Limits(),
    "fans": Limits(),
    "gathers": Limits(),
    "counts": Limits(),
    "writes": Limits(),
    "remembers": Limits(),
    "litters": Limits(),
}

Outcome = type[StorageError] | None
Attempt = Callable[[random.Random], None]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds: anonymous memory in bytes, descriptors, threads, processes below it, mounts in those."""

    anonymous: int
    descriptors: int
    threads: int
    processes: int
    mounts: int

    @classmethod
    def of(cls, process: psutil.Process) -> Footprint:
        below = process.children(recursive=True)
        return cls(
            _anonymous(process.pid),
            process.num_fds(),
            process.num_threads(),
            len(below),
            max((_private_mounts(one.pid) for one in below), default=0),
        )


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _private_mounts(pid: int) -> int:
    """How many directories for scratch files a function's init has mounted: one, while it makes a call's root."""
    try:
        return sum(line.split()[4] == SCRATCH for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    except OSError:
        return 0


@dataclass(slots=True)
class Soak:
    """What was seen: outcomes by kind of call, footprints by process, early and late, and what must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    early: dict[str, Footprint] = field(default_factory=dict)
    late: dict[str, Footprint] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        return [
            f"{self.outcomes.total()} calls: {outcomes}",
            *(f"{name}: {self.early[name]} then {late}" for name, late in self.late.items()),
            *self.violations,
        ]

    def judge(self) -> None:
        """Compare what there was early with what there was late, both times at rest."""
        for name, late in self.late.items():
            early = self.early[name]
            if late.anonymous > early.anonymous * (1 + GROWTH_MAX) + GROWTH_BYTES_MAX:
                self.violations.append(f"{name} grew from {early.anonymous:,} to {late.anonymous:,} bytes")
            if late.descriptors > early.descriptors + DESCRIPTORS_MORE:
                self.violations.append(f"{name} has {late.descriptors} descriptors, had {early.descriptors}")
            if late.mounts > 1:
                self.violations.append(f"a function of {name} has {late.mounts} directories for scratch files mounted")


class _Callers:
    """Calls of all kinds; any end but the one that belongs to a kind is a violation."""

    def __init__(self, pool: FunctionPool, told: Soak) -> None:
        self._pool = pool
        self._told = told
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(target_of(pool.address), options=CHANNEL_OPTIONS)
        self._stub = RPCServiceStub(self._channel)
        self._kinds: dict[str, tuple[float, Attempt, tuple[Outcome, ...]]] = {
            "result": (40, self._result, (None,)),
            "coroutine": (8, self._plain("later", '{"深": [1, null]}'), (None,)),
            "exception": (8, self._raises, (FunctionFailed,)),
            "garbage": (20, self._garbage, (None, InvalidArgument, FunctionFailed)),
            "absent": (2, self._plain("absent"), (FunctionNotFound,)),
            "memory": (2, self._plain("greedy"), (FunctionLimitExceeded,)),
            "wall": (1, self._plain("forever"), (DeadlineExceeded,)),
            "large": (2, self._plain("huge"), (FunctionLimitExceeded,)),
            "output": (2, self._plain("chatty"), (None,)),
            "threads": (1, self._plain("crowd"), (FunctionLimitExceeded,)),
            "crash": (1, self._plain("crashes"), (FunctionCrashed,)),
            "no-json": (2, self._plain("nameless"), (FunctionFailed,)),
            "nested": (3, self._plain("twice", "4"), (None,)),
            "files": (1, self._files, (None,)),
            "parallel": (2, self._parallel, (None,)),
            "stream": (2, self._stream, (None,)),
            "stream-left": (1, self._stream_left, (None,)),
            "ranged": (1, self._ranged, (None,)),
            "kept": (8, self._kept, (None,)),
            "kept-litter": (1, self._litter, (None, FunctionCrashed)),
            "deadline": (3, self._deadline, (DeadlineExceeded,)),
            "cancelled": (4, self._cancelled, (CallAbandoned,)),
        }

    def close(self) -> None:
        self._channel.close()

    def run(self, count: int, seed: int) -> None:
        """So many calls."""
        names = list(self._kinds)
        weights = [self._kinds[name][0] for name in names]
        chance = random.Random(seed)
        plan = [(name, chance.getrandbits(32)) for name in chance.choices(names, weights, k=count)]
        with ThreadPoolExecutor(CALLERS) as callers:
            for done in callers.map(lambda one: self._attempt(*one), plan):
                assert done

    def _attempt(self, kind: str, seed: int) -> bool:
        _, attempt, expected = self._kinds[kind]
        ended: Outcome = None
        text = ""
        try:
            attempt(random.Random(seed))
        except StorageError as error:
            ended, text = type(error), str(error)
        with self._lock:
            self._told.outcomes[f"{kind}/{'ok' if ended is None else ended.__name__}"] += 1
            # A busy machine may have its callers wait: that is an answer, too.
            if ended not in expected and ended is not FunctionBusy:
                name = "a result" if ended is None else ended.__name__
                self._told.violations.append(f"{kind} (seed {seed}) ended with {name}: {text[:300]}")
        return True

    def _call(self, function: str, *args: str, timeout_s: float = WAIT_S, **kwargs: str) -> str:
        return self._pool.client.call_texts(function, args, kwargs, user_id=USER, timeout_s=timeout_s)

    def _plain(self, function: str, *args: str) -> Attempt:
        def attempt(_chance: random.Random) -> None:
            self._call(function, *args)

        return attempt

    def _result(self, chance: random.Random) -> None:
        a, b = chance.randrange(-(10**9), 10**9), chance.randrange(10**6)
        told = self._call("add", str(a), b=str(b))
        if told != str(a + b):
            raise AssertionError(f"{a} and {b} are {told}?")

    def _raises(self, chance: random.Random) -> None:
        self._call("raises", json.dumps(_text(chance)))

    def _garbage(self, chance: random.Random) -> None:
        args = [_garbage(chance) for _ in range(chance.randrange(4))]
        kwargs = {_text(chance): _garbage(chance) for _ in range(chance.randrange(3))}
        function = chance.choice(["add", "echo", "later"])
        self._pool.client.call_texts(function, args, kwargs, user_id=_text(chance) or USER, timeout_s=WAIT_S)

    def _files(self, chance: random.Random) -> None:
        self._call("keeps", f"kept-{chance.randrange(4)}")

    def _parallel(self, chance: random.Random) -> None:
        count = chance.randrange(1, 10)
        told = self._call(chance.choice(["fans", "gathers"]), str(count))
        if told != str(sum(range(count)) + count):
            raise AssertionError(f"{count} calls at once came to {told}")

    def _stream(self, chance: random.Random) -> None:
        count, size = chance.randrange(50), chance.choice([0, 1_000])
        told = list(self._pool.client.stream("counts", [count, size], user_id=USER, timeout_s=WAIT_S))
        if told != [[number, "x" * size] for number in range(count)]:
            raise AssertionError(f"of {count} items, {len(told)} came, or others")

    def _stream_left(self, chance: random.Random) -> None:
        items = self._pool.client.stream("counts", [100_000, 1_000], user_id=USER, timeout_s=WAIT_S)
        for _ in range(chance.randrange(1, 5)):
            next(items)
        items.close()

    def _ranged(self, chance: random.Random) -> None:
        offset = chance.randrange(1_001)
        told = self._call("writes", f"ranged-{chance.getrandbits(40)}", str(offset))
        if told != str(offset):
            raise AssertionError(f"what was written at {offset} is at {told}")

    def _kept(self, chance: random.Random) -> None:
        user = f"user-{chance.randrange(6)}"
        told = self._pool.client.call("remembers", user_id=user, timeout_s=WAIT_S)
        if told != [user]:
            raise AssertionError(f"a process of {user} has served {told}")

    def _litter(self, chance: random.Random) -> None:
        user = f"litter-{chance.getrandbits(40)}"  # of whom there is no process yet
        how = chance.choice(["thread", "memory", "crash"])
        for _ in range(2):
            if self._pool.client.call("litters", [how], user_id=user, timeout_s=WAIT_S):
                raise AssertionError(f"a process went on after {how}")

    def _deadline(self, chance: random.Random) -> None:
        self._call("forever", timeout_s=chance.uniform(0.001, 0.15))

    def _cancelled(self, chance: random.Random) -> None:
        request = FunctionCallRequest(function_name="forever", user_id=USER)
        call = self._stub.CallFunction.future(request, timeout=WAIT_S)
        time.sleep(chance.uniform(0.0, 0.1))
        call.cancel()
        try:
            call.result()
        except grpc.FutureCancelledError:
            raise CallAbandoned("cancelled") from None
        except grpc.RpcError as error:
            raise status.decode(error, self._pool.address) from None


def _text(chance: random.Random) -> str:
    alphabet = chance.choice(["abc_09", " \t\n\r\0\x1b", "深é\u2028\U0001f600", "{}[]\",:\\'", "<>&;|$`"])
    return "".join(chance.choices(alphabet, k=chance.randrange(12)))


def _garbage(chance: random.Random) -> str:
    """An argument's text: JSON of all kinds, near misses, and none at all."""
    numbers = ["NaN", "-Infinity", "1e999", "-0", "1" * 4400, "007", "0x10", "1_000", "3.0", "1e3", "true", "null"]
    match chance.randrange(7):
        case 0:
            return chance.choice(numbers)
        case 1:
            return "[" * chance.choice([1, 50, 5_000, 100_000])
        case 2:
            return json.dumps({_text(chance): [_text(chance), chance.random()]})
        case 3:
            return json.dumps("x" * chance.choice([0, 1_000, 100_000]))
        case 4:
            return json.dumps(_text(chance))[: chance.randrange(9)]
        case 5:
            return "\\ud800" if chance.random() < 0.5 else '"\\ud800"'
    return _text(chance)


def soak(directory: Path, calls: int, seed: int, *, at_rest: bool = True) -> Soak:
    """So many calls.

    Args:
        directory: for all data.
        calls: how many; after a tenth of them is the first look at what the processes hold.
        seed: of which and with what.
        at_rest: whether that look waits until the functions' spare processes are let go, a minute; else there
            is no look but at what is left in the end.
    """
    told = Soak()
    (directory / "app.py").write_text(MODULE)
    with FunctionPool(directory) as pool:
        for name, limits in FUNCTIONS.items():
            options = {"isolation": "user", "process_s": KEPT_S} if name in KEPT else {}
            pool.deploy(name, f"app:{name}", directory, limits=limits, **options)
        pool.await_workers("keeps", 3)
        callers = _Callers(pool, told)
        try:
            callers.run(calls // 10, seed)
            told.early = _at_rest(pool, told) if at_rest else {}
            callers.run(calls - calls // 10, seed + 1)
            told.late = _at_rest(pool, told) if at_rest else {}
        finally:
            callers.close()
        told.judge()
        _require_all_alive(pool, told)
        _require_nothing_left(pool, told)
    return told


def _at_rest(pool: FunctionPool, told: Soak) -> dict[str, Footprint]:
    """What all processes hold once those that wait for calls have been let go."""
    most = len(FUNCTIONS) * PROCESSES_WARM + PROCESSES_BESIDE
    give_up = time.monotonic() + SPARES_IDLE_S + WAIT_S
    for name, worker in pool.workers.items():
        while (count := len(worker.descendants())) > most:
            if time.monotonic() > give_up:
                told.violations.append(f"{name} has {count} processes below it at rest")
                break
            time.sleep(0.5)
    time.sleep(SETTLE_S)
    processes = {"pool": pool.pool_process, **pool.workers}
    return {name: Footprint.of(psutil.Process(one.pid)) for name, one in processes.items()}


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

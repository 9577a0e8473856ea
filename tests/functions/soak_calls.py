"""Kinds of calls for the soak, with the ends that each may come to."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from storage.errors import InvalidArgument, StorageError
from taskworker import AsyncClient
from taskworker.errors import (
    CallAbandoned,
    DeadlineExceeded,
    FunctionBroken,
    FunctionBusy,
    FunctionCrashed,
    FunctionFailed,
    FunctionLimitExceeded,
    FunctionNotFound,
)
from taskworker.protos.functions_pb2 import StreamFunctionRequest
from taskworker.protos.functions_pb2_grpc import StreamServiceStub
from taskworker.protos.taskworker_pb2 import FunctionCallRequest
from taskworker.protos.taskworker_pb2_grpc import RPCServiceStub
from taskworker.rpc import status
from taskworker.rpc.dialling import dial
from tests.functions.processes import USER, WAIT_S, FunctionPool
from tests.functions.soak_deployments import Deployments

CALLERS = 8
Outcome = type[StorageError] | None
Attempt = Callable[[random.Random], None]
Kinds = dict[str, tuple[float, Attempt, tuple[Outcome, ...]]]
"""By name: how often among others, what is done, and how it may end."""


class Callers:
    """Calls of all kinds; any end but the one that belongs to a kind is a violation.

    Args:
        pool: that they are made to.
        compiled: whether there is a function with compiled packages.
    """

    def __init__(self, pool: FunctionPool, *, compiled: bool) -> None:
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self._pool = pool
        self._lock = threading.Lock()
        self._channel = dial(pool.address)
        self._stub = RPCServiceStub(self._channel)
        self._streams = StreamServiceStub(self._channel)
        self._kinds = self._of_calls() | self._of_streams() | self._of_deployments()
        if compiled:
            self._kinds["compiled"] = (2, self._compiled, (None,))

    def _of_calls(self) -> Kinds:
        return {
            "result": (40, self._result, (None,)),
            "coroutine": (8, self._plain("later", '{"深": [1, null]}'), (None,)),
            "exception": (8, self._raises, (FunctionFailed,)),
            "garbage": (20, self._garbage, (None, InvalidArgument, FunctionFailed)),
            "absent": (2, self._plain("absent"), (FunctionNotFound,)),
            "memory": (2, self._plain("greedy"), (FunctionLimitExceeded,)),
            "wall": (1, self._plain("forever"), (DeadlineExceeded,)),
            "cpu": (1, self._plain("spins"), (FunctionLimitExceeded,)),
            "large": (2, self._plain("huge"), (FunctionLimitExceeded,)),
            "output": (2, self._plain("chatty"), (None,)),
            "flood": (2, self._floods, (None,)),
            "threads": (1, self._plain("crowd"), (FunctionLimitExceeded,)),
            "pids": (1, self._answers("breeds", "PermissionError"), (None,)),
            "disk": (1, self._answers("fills", 8 << 20), (None,)),
            "descriptors": (1, self._plain("hoards"), (None,)),
            "crash": (1, self._plain("crashes"), (FunctionCrashed,)),
            "no-json": (2, self._plain("nameless"), (FunctionFailed,)),
            "nested": (3, self._answers("twice", 8, "4"), (None,)),
            "nested-fails": (2, self._fails_within, (None,)),
            "nested-left": (1, self._answers("gives_up", "gave up"), (None,)),
            "parallel": (2, self._parallel, (None,)),
            "files": (1, self._files, (None,)),
            "result-file": (1, self._result_file, (None,)),
            "ranged": (1, self._ranged, (None,)),
            "history": (1, self._history, (None,)),
            "configured": (4, self._configured, (None,)),
            "kept": (8, self._kept, (None,)),
            "kept-litter": (1, self._litter, (None, FunctionCrashed)),
            "deadline": (3, self._deadline, (DeadlineExceeded,)),
            "cancelled": (4, self._cancelled, (CallAbandoned,)),
        }

    def _of_streams(self) -> Kinds:
        return {
            "stream": (2, self._stream, (None,)),
            "stream-left": (1, self._stream_left, (None,)),
            "stream-slow": (0.5, self._stream_slow, (None,)),
            "stream-cancelled": (2, self._stream_cancelled, (CallAbandoned,)),
            "stream-async": (1, self._stream_async, (None,)),
            "stream-fails": (1, self._stream_fails, (FunctionFailed,)),
        }

    def _of_deployments(self) -> Kinds:
        self._deployments = deployments = Deployments(self._pool)
        return {
            "deploy": (0.4, deployments.another, (None,)),
            "deploy-back": (0.2, deployments.back, (None,)),
            "deploy-dry": (0.3, deployments.dry, (None,)),
            "deploy-failed": (0.6, deployments.broken, (FunctionBroken,)),
            "deploy-deleted": (0.3, deployments.passing, (FunctionNotFound,)),
        }

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def run(self, count: int, seed: int) -> None:
        """So many calls."""
        names = list(self._kinds)
        weights = [self._kinds[name][0] for name in names]
        chance = random.Random(seed)
        plan = [(name, chance.getrandbits(32)) for name in chance.choices(names, weights, k=count)]
        with ThreadPoolExecutor(CALLERS) as callers:
            for _ in callers.map(lambda one: self._attempt(*one), plan):
                pass

    def _attempt(self, kind: str, seed: int) -> None:
        _, attempt, expected = self._kinds[kind]
        ended = "ok"
        text = ""
        outcome: Outcome = None
        is_wrong = False
        try:
            attempt(random.Random(seed))
        except StorageError as error:
            outcome, ended, text = type(error), type(error).__name__, str(error)
        except AssertionError as error:
            ended, text, is_wrong = "wrong", str(error), True
        with self._lock:
            self.outcomes[f"{kind}/{ended}"] += 1
            # A busy machine may have its callers wait: that is an answer, too.
            if is_wrong or (outcome not in expected and outcome is not FunctionBusy):
                self.violations.append(f"{kind} (seed {seed}) ended with {ended}: {text[:300]}")

    # -- calls ---------------------------------------------------------------------------------------

    def _call(self, function: str, *args: str, timeout_s: float = WAIT_S, **kwargs: str) -> str:
        return self._pool.client.call_texts(function, args, kwargs, user_id=USER, timeout_s=timeout_s)

    def _plain(self, function: str, *args: str) -> Attempt:
        def attempt(_chance: random.Random) -> None:
            self._call(function, *args)

        return attempt

    def _answers(self, function: str, wanted: object, *args: str) -> Attempt:
        def attempt(_chance: random.Random) -> None:
            told = json.loads(self._call(function, *args))
            assert told == wanted, f"{function} answered {told!r}"

        return attempt

    def _result(self, chance: random.Random) -> None:
        a, b = chance.randrange(-(10**9), 10**9), chance.randrange(10**6)
        told = self._call("add", str(a), b=str(b))
        assert told == str(a + b), f"{a} and {b} are {told}?"

    def _raises(self, chance: random.Random) -> None:
        self._call("raises", json.dumps(_text(chance)))

    def _garbage(self, chance: random.Random) -> None:
        args = [_garbage(chance) for _ in range(chance.randrange(4))]
        kwargs = {_text(chance): _garbage(chance) for _ in range(chance.randrange(3))}
        function = chance.choice(["add", "echo", "later"])
        self._pool.client.call_texts(function, args, kwargs, user_id=_text(chance) or USER, timeout_s=WAIT_S)

    def _floods(self, chance: random.Random) -> None:
        self._call("floods", chance.choice(["line", "lines", "bytes"]))

    def _fails_within(self, chance: random.Random) -> None:
        name, kind = chance.choice(
            [
                ("nameless", "FunctionFailed"),
                ("crashes", "FunctionCrashed"),
                ("greedy", "FunctionLimitExceeded"),
                ("forever", "DeadlineExceeded"),
                ("absent", "FunctionNotFound"),
            ]
        )
        told = json.loads(self._call("fails_within", name))
        assert told in (kind, "FunctionBusy"), f"{name}, called by a function, came to {told}"

    def _parallel(self, chance: random.Random) -> None:
        count = chance.randrange(1, 10)
        told = self._call(chance.choice(["fans", "gathers"]), str(count))
        assert told == str(sum(range(count)) + count), f"{count} calls at once came to {told}"

    def _compiled(self, chance: random.Random) -> None:
        size = chance.randrange(2, 200)
        told = self._pool.client.call("compiled", [size], user_id=USER, timeout_s=WAIT_S)
        assert told == [sum(range(size * size)), min(size, 16)], f"of {size} by {size} came {told}"

    # -- files ---------------------------------------------------------------------------------------

    def _files(self, chance: random.Random) -> None:
        self._call("keeps", f"kept-{chance.randrange(4)}")

    def _result_file(self, chance: random.Random) -> None:
        size = 256 * chance.choice([1, 10, 5_000])
        name = f"made-{chance.getrandbits(40)}"
        made = self._pool.client.call("makes", [name, size], user_id=USER, timeout_s=WAIT_S)
        content = self._pool.client.get(made["file_id"], user_id=USER, version_id=made["version_id"])
        assert content == bytes(range(256)) * (size // 256), f"of {size} bytes, {len(content)} came, or others"
        self._pool.client.delete(made["file_id"], user_id=USER)

    def _ranged(self, chance: random.Random) -> None:
        offset = chance.randrange(1_001)
        told = self._call("writes", f"ranged-{chance.getrandbits(40)}", str(offset))
        assert told == str(offset), f"what was written at {offset} is at {told}"

    def _history(self, chance: random.Random) -> None:
        count = chance.randrange(1, 5)
        told = json.loads(self._call("revises", f"revised-{chance.getrandbits(40)}", str(count)))
        wanted = [[str(number) * 3 for number in reversed(range(count))], str(count - 1) * 3, "FileNotFound"]
        assert told == wanted, f"{count} versions are {told}"

    # -- users ---------------------------------------------------------------------------------------

    def _configured(self, chance: random.Random) -> None:
        self._deployments.require_deployed(f"user-{chance.randrange(6)}")

    def _kept(self, chance: random.Random) -> None:
        user = f"user-{chance.randrange(6)}"
        told = self._pool.client.call("remembers", user_id=user, timeout_s=WAIT_S)
        assert told == [user], f"a process of {user} has served {told}"

    def _litter(self, chance: random.Random) -> None:
        user = f"litter-{chance.getrandbits(40)}"  # of whom there is no process yet
        how = chance.choice(["thread", "memory", "flood", "crash"])
        for _ in range(2):
            littered = self._pool.client.call("litters", [how], user_id=user, timeout_s=WAIT_S)
            assert not littered, f"a process went on after {how}"

    # -- ends ----------------------------------------------------------------------------------------

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

    # -- streams -------------------------------------------------------------------------------------

    def _stream(self, chance: random.Random) -> None:
        count, size = chance.randrange(50), chance.choice([0, 1_000])
        told = list(self._pool.client.stream("counts", [count, size], user_id=USER, timeout_s=WAIT_S))
        assert told == [[number, "x" * size] for number in range(count)], f"{len(told)} of {count} came, or others"

    def _stream_left(self, chance: random.Random) -> None:
        items = self._pool.client.stream("counts", [100_000, 1_000], user_id=USER, timeout_s=WAIT_S)
        for _ in range(chance.randrange(1, 5)):
            next(items)
        items.close()

    def _stream_slow(self, chance: random.Random) -> None:
        items = self._pool.client.stream("counts", [2_000, 1_000], user_id=USER, timeout_s=WAIT_S)
        next(items)
        time.sleep(chance.uniform(0.1, 0.5))
        left = sum(1 for _ in items)
        assert left == 1_999, f"of 1,999 items that were left, {left} came"

    def _stream_cancelled(self, chance: random.Random) -> None:
        request = StreamFunctionRequest(function_name="trickles", user_id=USER)
        items = self._streams.StreamFunction(request, timeout=WAIT_S)
        time.sleep(chance.uniform(0.0, 0.1))
        cancelling = threading.Timer(chance.uniform(0.0, 0.1), items.cancel)
        cancelling.start()
        try:
            for _ in items:
                pass
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.CANCELLED:
                raise CallAbandoned("cancelled") from None
            raise status.decode(error, self._pool.address) from None
        finally:
            cancelling.join()

    def _stream_async(self, chance: random.Random) -> None:
        patience_s = chance.uniform(0.01, 0.2)

        async def watch() -> None:
            async with AsyncClient(self._pool.address) as client:
                items = client.stream("trickles", user_id=USER, timeout_s=WAIT_S)
                try:
                    await asyncio.wait_for(_last(items), patience_s)
                except TimeoutError:
                    return
                raise AssertionError("a stream that takes long ended early")

        asyncio.run(watch())

    def _stream_fails(self, chance: random.Random) -> None:
        count = chance.randrange(20)
        items = self._pool.client.stream("stumbles", [count], user_id=USER, timeout_s=WAIT_S)
        told = [next(items) for _ in range(count)]
        assert told == list(range(count)), f"the items before the failure were {told}"
        next(items)
        raise AssertionError("it went on after the failure")


async def _last(items: AsyncIterator[object]) -> None:
    async for _ in items:
        pass


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

"""A pool that runs functions, a bare relay with the same hops, and callers of either, each in its own process."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.bare_calls import BareClient
from benchmarks.cluster_processes import ClientProcess
from benchmarks.function_servers import BALANCED, SKEWED
from benchmarks.processes import ServerProcess, TaskFailed, obey, started_together
from benchmarks.workload import USER
from storage.errors import StorageError
from taskworker import Client
from taskworker.calls.spec import FunctionSpec
from taskworker.client.functions import FunctionClient
from taskworker.functions.packing.modules import pack_module
from taskworker.protos import functions_pb2, taskworker_pb2

WORKERS = 3
ADD = "add"
ADD_KEPT = "add_kept"
"""The same function with isolation="user": a process serves successive calls of one user."""
ADD_MODULE = "def add(a: int, b: int) -> int:\n    return a + b\n"
ARGUMENTS = ("3", "4")
READY_TIMEOUT_S = 120.0
POLL_S = 0.05


class FunctionPool:
    """A pool and three workers. Each worker can run deployed functions, and offers functions of its own program.

    Args:
        home: a directory for their data.
        pause_s: how long a call of the workers' own functions takes.
        slower: how many times longer ``skewed`` takes on the last worker.
    """

    def __init__(self, home: Path, *, pause_s: float, slower: float) -> None:
        self._home = home
        self._pauses_s = [pause_s] * (WORKERS - 1) + [pause_s * slower]
        self._usual_s = pause_s

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            pool = stack.enter_context(ServerProcess("benchmarks.function_servers", "pool", self._home / "pool"))
            self.address = pool.address
            workers = [self._worker(number, pause_s) for number, pause_s in enumerate(self._pauses_s)]
            stack.enter_context(started_together(workers))
            self._processes = [pool, *workers]
            self._deploy()
            self._await_able()
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    def cpu_s(self) -> float:
        """Return the processor time that pool, workers and sandboxes have used so far, in seconds."""
        return cpu_s_of([process.pid for process in self._processes])

    def _worker(self, number: int, pause_s: float) -> ServerProcess:
        name = f"worker-{number}"
        arguments = (name, self.address, self._home / name, self._usual_s, pause_s)
        return ServerProcess("benchmarks.function_servers", "worker", *arguments)

    def _deploy(self) -> None:
        (self._home / "app.py").write_text(ADD_MODULE)
        specs = (
            FunctionSpec(name=ADD, entry="app:add"),
            FunctionSpec(name=ADD_KEPT, entry="app:add", isolation="user"),
        )
        with FunctionClient(self.address) as functions:
            for spec in specs:
                bundle = pack_module("app:add", spec, root=self._home).bundle
                _until(functools.partial(functions.deploy, bundle, user_id=USER), "the pool takes no function")

    def _await_able(self) -> None:
        """Wait until every function is warm on all workers."""
        wanted = {ADD, ADD_KEPT, BALANCED, SKEWED}
        users = map(str, itertools.count())

        def able() -> None:
            able_now = {one.function for one in functions.functions() if len(one.workers) == WORKERS}
            warm = {(one.function, warm.worker_id) for one in functions.functions() for warm in one.warm}
            if wanted - able_now or len(warm) < WORKERS * len(wanted):
                for name in wanted:  # a new user each time: calls of a user go to that user's process
                    client.call(name, ARGUMENTS if name in (ADD, ADD_KEPT) else (), user_id=next(users))
                raise StorageError("not yet")

        with FunctionClient(self.address) as functions, Client(self.address) as client:
            _until(able, "not all workers run all functions")


def _until(attempt: Callable[[], object], failure: str) -> None:
    give_up = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            attempt()
        except StorageError as error:
            if time.monotonic() > give_up:
                raise TaskFailed(f"{failure}: {error}") from error
            time.sleep(POLL_S)
        else:
            return


def cpu_s_of(pids: Sequence[int]) -> float:
    """Return the processor time of processes and their descendants (running or waited for), in seconds."""
    total = 0.0
    for pid in pids:
        for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
            try:
                total += sum(process.cpu_times()[:4])
            except psutil.NoSuchProcess:
                continue
    return total


class BareCalls:
    """A bare relay and its end, with messages of the same sizes as for a call of ``add``."""

    def __enter__(self) -> Self:
        sizes = message_sizes()
        self.request = bytes(sizes["call"])
        with ExitStack() as stack:
            end = stack.enter_context(ServerProcess("benchmarks.bare_calls", sizes["invoked"]))
            arguments = (sizes["answer"], end.address, sizes["invoke"])
            relay = stack.enter_context(ServerProcess("benchmarks.bare_calls", *arguments))
            self.address = relay.address
            self._processes = (relay, end)
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    def cpu_s(self) -> float:
        """Return the processor time that relay and end have used so far, in seconds."""
        return cpu_s_of([process.pid for process in self._processes])


def message_sizes() -> dict[str, int]:
    """Return the sizes of the messages for one call of ``add``: to the pool, to the worker, and back."""
    call = taskworker_pb2.FunctionCallRequest(function_name=ADD, args=ARGUMENTS, user_id=USER)
    invoke = functions_pb2.InvokeRequest(
        call_id="0" * 16,
        function_name=ADD,
        file_id="0" * 32,
        version_id="0" * 64,
        args=ARGUMENTS,
        user_id=USER,
        token="0" * 32,
    )
    invoked = functions_pb2.InvokeResponse(result="7", wall_ms=1.5, cpu_ms=0.5, memory_bytes=1 << 25)
    answer = taskworker_pb2.FunctionCallResponse(result="7", status=True)
    messages = {"call": call, "invoke": invoke, "invoked": invoked, "answer": answer}
    return {name: message.ByteSize() for name, message in messages.items()}


class _Tasks:
    """The tasks of a process of callers."""

    def latencies(self, address: str, count: int, *, bare: bool, function: str = ADD) -> dict[str, object]:
        """Call ``count`` times, one after another; return the milliseconds of each call."""
        with _Calls(address, bare=bare, function=function) as calls:
            calls.once()
            taken = []
            for _ in range(count):
                start = time.perf_counter()
                calls.once()
                taken.append((time.perf_counter() - start) * 1e3)
        return {"milliseconds": taken}

    def sustain(
        self, address: str, callers: int, seconds: float, *, bare: bool, function: str = ADD
    ) -> dict[str, object]:
        """Call from ``callers`` threads for ``seconds``; return the number of calls."""
        with _Calls(address, bare=bare, function=function) as calls:
            calls.once()
            begun = time.process_time()
            done = _together(callers, seconds, calls.once)
            return {"calls": len(done), "cpu": time.process_time() - begun}

    def share(self, address: str, function: str, callers: int, count: int) -> dict[str, object]:
        """Make ``count`` calls from ``callers`` threads; return how many each worker ran."""
        with Client(address) as client:
            left = iter(range(count))

            def once() -> str | None:
                return client.call(function, user_id=USER) if next(left, None) is not None else None

            ran = _together(callers, None, once)
        return {"shares": Counter(ran)}


class _Calls:
    """Calls an addition through a pool, or makes bare calls of the same sizes. Checks the pool's answers."""

    def __init__(self, address: str, *, bare: bool, function: str) -> None:
        self._function = function
        self._client: BareClient | Client = BareClient(address) if bare else Client(address)
        self._request = bytes(message_sizes()["call"])

    def once(self) -> object:
        """Call once, and check the answer."""
        if isinstance(self._client, BareClient):
            return self._client.call(self._request)
        told = self._client.call_texts(self._function, ARGUMENTS, {}, user_id=USER)
        if told != "7":
            raise AssertionError(f"3 and 4 are {told}?")
        return told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


def _together(callers: int, seconds: float | None, once: Callable[[], object]) -> list[object]:
    """Call ``once`` repeatedly in ``callers`` threads; return all results.

    Args:
        callers: how many threads.
        seconds: for how long; None: until the calls return None.
        once: makes one call.
    """
    end = None if seconds is None else time.monotonic() + seconds
    done: list[object] = []
    failures: list[BaseException] = []

    def call() -> None:
        try:
            while (end is None or time.monotonic() < end) and (told := once()) is not None:
                done.append(told)
        except BaseException as error:  # raised again below, in the main thread
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return done


def caller_process() -> ClientProcess:
    """Return a process of callers."""
    return ClientProcess("benchmarks.function_processes")


if __name__ == "__main__":
    obey(_Tasks())

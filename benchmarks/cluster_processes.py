"""A pool, its workers and its clients, each in its own process, on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from benchmarks.measure import GIB
from benchmarks.processes import (
    PeakMemory,
    ServerProcess,
    TaskFailed,
    end_by_input,
    own_peak_resident,
    started_together,
)
from benchmarks.workload import USER, Discard, RandomContent
from taskworker import Client
from taskworker.protos import pool_pb2
from taskworker.protos.pool_pb2_grpc import PoolServiceStub

WORKERS = 6
CAPACITY = 1024 * GIB
POLL_S = 0.01
SETTLED_TIMEOUT_S = 600.0
LONG_LEASE_S = 3600.0


class Cluster:
    """A pool and its workers, each in its own process. All of them are killed at the end.

    Args:
        home: a directory for their data; it need not exist.
        lease_s: how long a silent worker counts as alive; after that it is lost at once. By default, no worker is lost,
            and nothing is repaired, during a benchmark.
        module: the module to run as the pool with ``python -m``.
    """

    def __init__(self, home: Path, lease_s: float = LONG_LEASE_S, module: str = "benchmarks.pool_process") -> None:
        self._home = home
        self._pool = ServerProcess(module, home / "pool", lease_s, 0.0)
        self._workers: dict[str, ServerProcess] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._pool)
            self._channel = grpc.insecure_channel(self._pool.address)
            stack.callback(self._channel.close)
            self._stub = PoolServiceStub(self._channel)
            self._workers = {name: self._worker(name) for name in (f"worker-{number}" for number in range(WORKERS))}
            stack.enter_context(started_together(list(self._workers.values())))
            stack.callback(self._kill_all)
            self.await_settled(self._workers)
            self.idle_memory = self._pool.memory
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    @property
    def address(self) -> str:
        """The pool's address for clients."""
        return self._pool.address

    @property
    def pool_memory(self) -> PeakMemory:
        """The pool's peak memory so far."""
        return self._pool.memory

    @property
    def workers(self) -> list[str]:
        """The names of all workers, including killed ones."""
        return list(self._workers)

    def kill(self, *names: str) -> None:
        """Kill workers as a crash would."""
        for name in names:
            self._workers[name].kill()

    def await_settled(self, workers: Collection[str]) -> None:
        """Wait until the layout consists of exactly these workers, and every shard is where the layout places it.

        Raises:
            TaskFailed: this did not happen within `SETTLED_TIMEOUT_S`.
        """
        self._await(lambda: self._settled(set(workers)), "whole")

    def await_healed(self) -> None:
        """Wait until everything that reads found missing has been made again.

        Raises:
            TaskFailed: this did not happen within `SETTLED_TIMEOUT_S`.
        """
        self._await(lambda: all(work.state == "idle" for work in self._status().work if work.name == "heal"), "healed")

    def _await(self, reached: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + SETTLED_TIMEOUT_S
        while not reached():
            if time.monotonic() > until:
                raise TaskFailed(f"the pool is not {what} after {SETTLED_TIMEOUT_S:.0f} s: {self._status().health}")
            time.sleep(POLL_S)

    def lost_at(self, name: str) -> float:
        """Return when the pool declared a worker lost, in seconds since 1970."""
        events = [event for event in self._status().events if event.kind == "lost" and name in event.text]
        return events[-1].time_ms / 1000

    def _worker(self, name: str) -> ServerProcess:
        arguments = (name, self._pool.address, self._home / name, CAPACITY)
        return ServerProcess("benchmarks.worker_process", *arguments)

    def _status(self) -> pool_pb2.PoolStatus:
        return self._stub.Status(pool_pb2.StatusRequest())

    def _settled(self, workers: set[str]) -> bool:
        layout = self._stub.GetLayout(pool_pb2.GetLayoutRequest())
        return {member.worker_id for member in layout.members} == workers and layout.former == 0

    def _kill_all(self) -> None:
        self._pool.kill()
        self.kill(*self._workers)


class ClientProcess:
    """A client in its own process that runs tasks on request.

    Args:
        module: the module to run with ``python -m``; it must call :func:`obey`.
    """

    def __init__(self, module: str = "benchmarks.cluster_processes") -> None:
        self._module = module

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", self._module]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_by_input(self._process)

    def begin(self, task: str, **arguments: object) -> Callable[[], dict[str, Any]]:
        """Start a task; return a function that waits for its outcome."""
        assert self._process.stdin is not None
        print(json.dumps([task, arguments], default=str), file=self._process.stdin, flush=True)
        return self._outcome

    def run(self, task: str, **arguments: object) -> dict[str, Any]:
        """Run a task and return its outcome."""
        return self.begin(task, **arguments)()

    def _outcome(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TaskFailed(f"a client ended with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


class _Tasks:
    """The tasks of a client process. Its channels stay open between tasks."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}

    def connect(self, address: str) -> None:
        """Connect to a pool."""
        self._clients[address] = Client(address)
        self._clients[address].find("none", user_id=USER)

    def push(self, address: str, name: str, source: str) -> None:
        """Push a file from disk."""
        self._clients[address].push(Path(source), filename=name, user_id=USER)

    def push_random(self, address: str, name: str, size: int) -> None:
        """Push ``size`` random bytes, which depend on the name."""
        pieces: Iterator[bytes] = RandomContent(name, size).pieces()
        self._clients[address].push(pieces, filename=name, user_id=USER)

    def get(self, address: str, name: str) -> None:
        """Read a file to its end."""
        client = self._clients[address]
        found = client.find(name, user_id=USER)
        if found is None:
            raise FileNotFoundError(f"the pool has no {name}")
        client.download(found.file_id, BufferedWriter(Discard()), user_id=USER)


def obey(tasks: object) -> None:
    """Run the tasks named on standard input as methods of ``tasks``, and print their outcomes.

    An outcome has the time and peak memory, and the values that the method returns, if any.
    """
    for line in sys.stdin:
        name, arguments = json.loads(line)
        task: Callable[..., Any] = getattr(tasks, name)
        start = time.perf_counter()
        told: dict[str, Any] = task(**arguments) or {}
        outcome = {"seconds": time.perf_counter() - start, "peak_resident": own_peak_resident(), **told}
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    obey(_Tasks())

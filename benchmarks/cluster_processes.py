"""A pool, its workers and its clients, each in its own process, on loopback."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from functools import partial
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import psutil

from benchmarks.measure import GIB, seconds_of
from benchmarks.processes import (
    ServerProcess,
    TaskFailed,
    end_by_input,
    obey,
    outcome_of,
    started_together,
    tell,
)
from benchmarks.workload import USER, Discard, RandomContent, small_content
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
        checkout: a directory with another version of this repository, whose pool and workers are to be run.
    """

    def __init__(
        self,
        home: Path,
        lease_s: float = LONG_LEASE_S,
        module: str = "benchmarks.pool_process",
        checkout: Path | None = None,
    ) -> None:
        self._home = home
        self._checkout = checkout
        self._pool = ServerProcess(module, home / "pool", lease_s, 0.0, checkout=checkout)
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
            self.idle_peak = self.pool_peak
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
    def pool_pid(self) -> int:
        """The process id of the pool."""
        return self._pool.pid

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of all workers, including killed ones."""
        return [worker.pid for worker in self._workers.values()]

    @property
    def pool_peak(self) -> int:
        """The pool's peak resident memory so far, in bytes."""
        return self._pool.peak_resident

    @property
    def worker_peak(self) -> int:
        """The peak resident memory so far of the worker with the highest one, in bytes."""
        return max(worker.peak_resident for worker in self._workers.values())

    @property
    def workers(self) -> list[str]:
        """The names of all workers, including killed ones."""
        return list(self._workers)

    def kill(self, *names: str) -> None:
        """Kill workers as a crash would."""
        for name in names:
            self._workers[name].kill()

    def peak_of(self, name: str) -> int:
        """Return the peak resident memory so far of a worker, in bytes."""
        return self._workers[name].peak_resident

    def ports_of(self, name: str) -> list[int]:
        """Return the ports that a worker listens on."""
        connections = psutil.Process(self._workers[name].pid).net_connections("tcp")
        return sorted({each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN})

    def pause(self, name: str) -> None:
        """Stop a worker: it keeps its connections, and answers nothing."""
        self._workers[name].pause()

    def resume(self, name: str) -> None:
        """Let a stopped worker run again."""
        self._workers[name].resume()

    def run_in_pool(self, task: str, **arguments: object) -> dict[str, Any]:
        """Run a task in the pool's own process, if its module obeys; return its outcome."""
        return self._pool.run(task, **arguments)

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

    def await_noticed(self, names: Collection[str]) -> None:
        """Wait until the pool has noticed that these workers do not answer.

        Raises:
            TaskFailed: this did not happen within `SETTLED_TIMEOUT_S`.
        """
        self._await(lambda: set(names) <= self._away(), f"aware that {', '.join(names)} do not answer")

    def _away(self) -> set[str]:
        """The names of the workers that do not answer, as far as the pool has noticed."""
        return {worker.worker_id for worker in self._status().workers if worker.state in ("suspect", "lost")}

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
        return ServerProcess("benchmarks.worker_process", *arguments, checkout=self._checkout)

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

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def begin(self, task: str, **arguments: object) -> Callable[[], dict[str, Any]]:
        """Start a task; return a function that waits for its outcome."""
        tell(self._process, task, **arguments)
        return partial(outcome_of, self._process)

    def run(self, task: str, **arguments: object) -> dict[str, Any]:
        """Run a task and return its outcome."""
        return self.begin(task, **arguments)()


class _Tasks:
    """The tasks of a client process. Its channels stay open between tasks."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._relayed: dict[str, Client] = {}

    def connect(self, address: str) -> None:
        """Connect to a pool."""
        self._clients[address] = Client(address)
        self._clients[address].find("none", user_id=USER)
        self._relayed[address] = Client(address, direct=False)

    def push(self, address: str, name: str, source: str) -> dict[str, float]:
        """Push a file from disk; return the seconds that this took."""
        client = self._clients[address]
        return {"took": seconds_of(lambda: client.push(Path(source), filename=name, user_id=USER))}

    def push_small(self, address: str, series: str, count: int, size: int) -> dict[str, float]:
        """Push small files, one after another; return the seconds that this took."""
        client = self._clients[address]
        contents = [small_content(series, index, size) for index in range(count)]

        def action() -> None:
            for index, content in enumerate(contents):
                client.push(content, filename=f"{series}/{index}", user_id=USER)

        return {"took": seconds_of(action)}

    def push_and_get(self, address: str, series: str, size: int, seconds: float) -> None:
        """Push a file of ``size`` random bytes and get it, again and again, until ``seconds`` have passed."""
        until = time.monotonic() + seconds
        for number in itertools.count():
            self.push_random(address, f"{series}/{number}", size)
            self.get(address, f"{series}/{number}")
            if time.monotonic() > until:
                return

    def push_random(self, address: str, name: str, size: int) -> None:
        """Push ``size`` random bytes, which depend on the name."""
        pieces: Iterator[bytes] = RandomContent(name, size).pieces()
        self._clients[address].push(pieces, filename=name, user_id=USER)

    def get(self, address: str, name: str) -> dict[str, float]:
        """Read a file to its end; return the seconds that this took, without those to find it."""
        return self._get(self._clients[address], name)

    def get_relayed(self, address: str, name: str) -> dict[str, float]:
        """Like :meth:`get`, through the pool instead of from the workers."""
        return self._get(self._relayed[address], name)

    def _get(self, client: Client, name: str) -> dict[str, float]:
        found = client.find(name, user_id=USER)
        if found is None:
            raise FileNotFoundError(f"the pool has no {name}")
        return {"took": seconds_of(lambda: client.download(found.file_id, BufferedWriter(Discard()), user_id=USER))}


if __name__ == "__main__":
    obey(_Tasks())

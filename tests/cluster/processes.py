"""A pool and its workers as real processes, started by the command line or by test programs of the same manners."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import psutil

from taskworker import Client
from taskworker.client.pool import PoolClient, PoolStatus
from taskworker.errors import StorageUnavailable
from tests.forked import Command, is_possible

WAIT_S = 60.0


class Process:
    """One ``taskworker`` process that announced itself on stdout.

    Args:
        arguments: of the command line.
        log: gets its error output.
        module: what ``python -m`` runs.
        inside: what to write before the command.
        tree: directory of the release to run; None: this one.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        module: str = "taskworker",
        inside: Sequence[str] = (),
        tree: Path | None = None,
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKWORKER_")}
        if tree is not None:
            environment["PYTHONPATH"] = str(tree)
        environment["PYTHONFAULTHANDLER"] = "1"
        self._log = log
        arguments = [*arguments, "--json", "--supervised"]
        pipe = subprocess.PIPE
        self._process: Command | subprocess.Popen[bytes]
        with log.open("ab") as stderr:
            if module == "taskworker" and not inside and tree is None and is_possible(environment):
                self._process = Command(
                    arguments, cwd=Path.cwd(), env=environment, stdin=pipe, stdout=pipe, stderr=stderr
                )
            else:
                started = [*inside, sys.executable, "-m", module, *arguments]
                self._process = subprocess.Popen(
                    started, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, cwd=tree
                )
        self.announced = self._read_announcement(log)

    def _read_announcement(self, log: Path) -> dict[str, object]:
        assert self._process.stdout is not None
        told = b""
        while piece := os.read(self._process.stdout.fileno(), 4096):
            told += piece
            try:
                document: dict[str, object] = json.loads(told)
            except ValueError:
                continue
            return document
        code = self._process.wait()
        self._close_pipes()
        raise AssertionError(f"the process ended with {code}: {log.read_text()[-2000:]}")

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self.announced["address"])

    @property
    def shard_address(self) -> str:
        """Where a worker's volume is reached."""
        return str(self.announced["shard_address"])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def tell(self, line: str) -> None:
        """Give a test program a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def descendants(self) -> list[psutil.Process]:
        """All processes that came of it and run."""
        return psutil.Process(self.pid).children(recursive=True)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self.alive:
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._close_pipes()

    def stop(self) -> int:
        """End like by Ctrl-C; the exit code."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGINT)
        try:
            code = self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)  # which has it say where its threads are
            self._process.wait()
            raise AssertionError(f"it did not end within {WAIT_S:.0f} s: {self._log.read_text()[-20_000:]}") from None
        self._close_pipes()
        return code

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Cluster:
    """A pool and workers in a directory; a context manager that ends them all.

    Args:
        directory: for all data.
        workers: how many are started at first, ``w0`` on.
        grace_s: of the pool.
        tranquility: of the pool; 0, as tests wait for what is mended.
        pool_module: what ``python -m`` runs as the pool.
        options: more of the pool's.
        host: where the pool listens.
        place: (worker's number) → what to write before its command, and the host that it listens on.
        tree: directory of the release to run; None: this one.
        joins: whether workers join with tokens, and so have certificates.

    Attributes:
        options: of the pool when it is started again.
        tree: of processes that are started from now on.
    """

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 6,
        grace_s: float = 60.0,
        tranquility: float = 0.0,
        pool_module: str = "taskworker",
        options: tuple[str, ...] = (),
        host: str = "127.0.0.1",
        place: Callable[[int], tuple[Sequence[str], str]] = lambda number: ((), "127.0.0.1"),
        tree: Path | None = None,
        joins: bool = False,
    ) -> None:
        self.directory = directory
        self._place = place
        self.grace_s = grace_s
        self._tranquility = tranquility
        self._pool_module = pool_module
        self.options = (*options, "--join", f"{host}:0") if joins else options
        self._joins = joins
        self.tree = tree
        self.pool_process = self._start_pool(f"{host}:0")
        self.address = self.pool_process.address
        self.workers: dict[str, Process] = {}
        self.client = Client(self.address, timeout_s=WAIT_S)
        self._pool_client = PoolClient(self.address)
        self.start_workers(f"w{number}" for number in range(workers))
        self.await_status(lambda status: sum(worker.share > 0 for worker in status.workers) == workers)

    def _start_pool(self, listen: str) -> Process:
        home = str(self.directory / "pool")
        arguments = ["pool", "--dir", home, "--listen", listen, "--grace", str(self.grace_s)]
        arguments += ["--tranquility", str(self._tranquility), *self.options]
        return Process(arguments, self.directory / "pool.log", self._pool_module, tree=self.tree)

    def start_worker(self, name: str, *more: str, module: str = "taskworker") -> Process:
        """Start a worker, new or again, by the command line or by another ``module``."""
        home = str(self.directory / name)
        inside, host = self._place(int(name.removeprefix("w")))
        arguments = ["worker", "--id", name, "--dir", home, "--listen", f"{host}:0", "--pool", self.address]
        if self._joins:
            arguments[-1] = str(self.pool_process.announced["join_address"])
            if not (self.directory / name).exists():
                arguments += ["--token", self._pool_client.new_join_token(name)[0]]
        log = self.directory / f"{name}.log"
        self.workers[name] = Process([*arguments, "--capacity", "10", *more], log, module, inside, self.tree)
        return self.workers[name]

    def restart_pool(self) -> None:
        """Start the pool again at its address after it was killed or stopped."""
        self.pool_process = self._start_pool(self.address)

    def kill(self, *names: str) -> None:
        """SIGKILL workers."""
        for name in names:
            self.workers.pop(name).kill()

    def start_workers(self, names: Iterable[str]) -> None:
        """Start several at once, as each takes a while."""
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.start_worker, names))

    def status(self) -> PoolStatus:
        """The pool at a glance."""
        status = self._pool_client.status()
        assert status is not None
        return status

    def drain(self, name: str) -> float:
        """Move a worker's shards off it; the share of all shards that the pool says it moves."""
        return self._pool_client.drain(name)

    def planned_moves(self, added: str) -> float:
        """The share of all shards that the pool says would move if a worker like the others were added."""
        like = self._pool_client.layout().members[0]
        return self._pool_client.preview([replace(like, worker_id=added)], []).moved

    def await_moved(self, version: int, wait_s: float = WAIT_S) -> None:
        """Return once this layout, or a later one, is there and every shard is in its place by it."""
        self.await_status(lambda status: status.layout_version >= version)
        give_up_at = time.monotonic() + wait_s
        while self._pool_client.layout().former:
            if time.monotonic() > give_up_at:
                raise AssertionError(f"shards are still to be moved after {wait_s:.0f} s: {self.status().work}")
            time.sleep(0.05)

    def await_status(self, wanted: Callable[[PoolStatus], bool], wait_s: float = WAIT_S) -> PoolStatus:
        """The status once it is as wanted."""
        give_up_at = time.monotonic() + wait_s
        while True:
            status: PoolStatus | None = None
            try:
                status = self.status()
                if wanted(status):
                    return status
            except StorageUnavailable:
                pass
            if time.monotonic() > give_up_at:
                raise AssertionError(f"the pool did not get there: {status}")
            time.sleep(0.05)

    def await_survivable(self, workers: int, wait_s: float = WAIT_S) -> PoolStatus:
        """The status once nothing is being mended and any ``workers`` may be lost."""
        return self.await_status(lambda status: status.workers_survivable >= workers and not status.is_mending, wait_s)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self._pool_client.close()
        for process in (self.pool_process, *self.workers.values()):
            process.kill()

"""Pools as their users run them: ``taskworker pool`` and ``taskworker worker``, with contexts, on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.function_processes import ADD, ADD_MODULE
from benchmarks.processes import TaskFailed, end_by_input, started_together
from benchmarks.workload import USER
from storage.errors import StorageError
from taskworker import Client
from taskworker.calls.spec import FunctionSpec
from taskworker.client.functions import FunctionClient
from taskworker.client.pool import PoolClient
from taskworker.functions.packing.modules import pack_module

WORKERS = 6
READY_TIMEOUT_S = 180.0
POLL_S = 0.1
_HOST = "127.0.0.1:0"


class Program:
    """A process of the command line that tells where it listens, and ends when its standard input is closed.

    Args:
        arguments: of the command line.
        log: gets what it writes to its standard error.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._command = [sys.executable, "-m", "taskworker", *arguments, "--json", "--supervised"]
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.address = str(self._announced()["address"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_by_input(self._process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _announced(self) -> dict[str, object]:
        assert self._process.stdout is not None
        told = ""
        while line := self._process.stdout.readline():
            told += line
            try:
                announced: dict[str, object] = json.loads(told)
            except ValueError:
                continue
            return announced
        end_by_input(self._process)
        raise TaskFailed(f"{' '.join(self._command[3:5])} did not start: {self._log.read_text()[-2000:]}")


class ProgramPool:
    """A 4-of-6 pool with six workers, which can run a deployed function that adds.

    Args:
        home: a directory for their data; it need not exist.
        options: more options of the pool.
        joins: whether workers join with tokens; otherwise as workers of the same machine.
    """

    def __init__(self, home: Path, options: Sequence[str], *, joins: bool) -> None:
        self._home, self._joins = home, joins
        self._options = [*options, *(("--join", _HOST) if joins else ())]

    def __enter__(self) -> Self:
        self._home.mkdir(parents=True)
        with ExitStack() as stack:
            arguments = ["pool", "--dir", str(self._home / "pool"), "--listen", _HOST, *self._options]
            self._pool = stack.enter_context(Program(arguments, self._home / "pool.log"))
            self._workers = [self._worker(f"w{number}") for number in range(WORKERS)]
            stack.enter_context(started_together(self._workers))
            self._deploy()
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
        """The process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def _worker(self, name: str) -> Program:
        arguments = ["worker", "--id", name, "--dir", str(self._home / name), "--listen", _HOST, "--capacity", "1000"]
        arguments += ["--scrub-rate", "0"]
        if self._joins:
            with PoolClient(self.address) as operator:
                token, address = operator.new_join_token(name)
            arguments += ["--pool", address, "--token", token]
        else:
            arguments += ["--pool", self.address]
        return Program(arguments, self._home / f"{name}.log")

    def _deploy(self) -> None:
        """Deploy the function once all workers have joined, and wait until all can run it."""
        (self._home / "app.py").write_text(ADD_MODULE)
        bundle = pack_module("app:add", FunctionSpec(name=ADD, entry="app:add"), root=self._home).bundle

        def able() -> None:
            with PoolClient(self.address) as operator:
                status = operator.status()
            workers = [] if status is None else status.workers
            joined = sum(worker.state == "alive" and worker.share > 0 for worker in workers)
            if joined < WORKERS:
                raise StorageError(f"{joined} workers have joined")
            if not deployed:
                deployed.append(functions.deploy(bundle, user_id=USER).version_id)
            (told,) = (one for one in functions.functions() if one.function == ADD)
            if len(told.workers) < WORKERS:
                raise StorageError(f"{len(told.workers)} workers can run the function")
            client.call_texts(ADD, ("3", "4"), {}, user_id=USER)

        deployed: list[str] = []
        with FunctionClient(self.address) as functions, Client(self.address) as client:
            _until(able)


def _until(attempt: Callable[[], None]) -> None:
    give_up = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            return attempt()
        except StorageError as error:
            if time.monotonic() > give_up:
                raise TaskFailed(f"the pool is not ready: {error}") from error
            time.sleep(POLL_S)


@contextmanager
def contexts_in(directory: Path) -> Iterator[None]:
    """Have this process, and those that it starts, keep the contexts of pools in a directory of their own."""
    former = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(directory)
    try:
        yield
    finally:
        if former is None:
            del os.environ["XDG_CONFIG_HOME"]
        else:
            os.environ["XDG_CONFIG_HOME"] = former

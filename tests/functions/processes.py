"""A small pool of real processes that runs functions: any one of three copies suffices, so that three workers do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from storage.errors import DataLossError, InsufficientWorkers
from taskworker import Client
from taskworker.calls.spec import FunctionSpec
from taskworker.client.functions import FunctionClient, FunctionStatus
from taskworker.client.pool import PoolClient, PoolStatus
from taskworker.errors import StorageUnavailable
from taskworker.functions.packing.modules import pack_module
from tests.cluster.processes import Process

WAIT_S = 60.0
USER = "ann"


class FunctionPool:
    """A pool and its workers in a directory; a context manager that ends them all."""

    def __init__(self, directory: Path, *, workers: int = 3, pool_options: Sequence[str] = ()) -> None:
        self.directory = directory
        arguments = ["pool", "--dir", str(directory / "pool"), "--listen", "127.0.0.1:0", "--k", "1", "--n", "3"]
        self._arguments = [*arguments, "--tranquility", "0", *pool_options]
        self.pool_process = Process(self._arguments, directory / "pool.log")
        self.address = self.pool_process.address
        self.workers: dict[str, Process] = {}
        self.client = Client(self.address, timeout_s=WAIT_S)
        self.functions = FunctionClient(self.address)
        with ThreadPoolExecutor() as threads:  # together, as each takes a while
            list(threads.map(self.start_worker, [f"w{number}" for number in range(workers)]))

    def start_worker(self, name: str, *more: str) -> Process:
        """Start a worker, new or again."""
        home = str(self.directory / name)
        arguments = ["worker", "--id", name, "--dir", home, "--listen", "127.0.0.1:0", "--pool", self.address]
        self.workers[name] = Process([*arguments, "--capacity", "10", *more], self.directory / f"{name}.log")
        return self.workers[name]

    def restart_pool(self) -> None:
        """SIGKILL the pool, and start it again at its address."""
        self.pool_process.kill()
        arguments = [self.address if one == "127.0.0.1:0" else one for one in self._arguments]
        self.pool_process = Process(arguments, self.directory / "pool.log")

    def deploy(self, name: str, entry: str, root: Path, **options: object) -> str:
        """Deploy a module's function; the version."""
        packed = pack_module(entry, FunctionSpec(name=name, entry=entry, **options), root=root)  # type: ignore[arg-type]
        give_up = time.monotonic() + WAIT_S
        while True:
            try:
                return self.functions.deploy(packed.bundle, user_id=USER).version_id
            except (StorageUnavailable, InsufficientWorkers):  # its workers are only just joining
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)

    def status(self, name: str) -> FunctionStatus:
        """One function."""
        return next(one for one in self.functions.functions() if one.function == name)

    def await_workers(self, name: str, count: int) -> FunctionStatus:
        """The function's status once so many workers can run it."""
        return self.await_status(name, lambda status: len(status.workers) == count)

    def await_status(self, name: str, wanted: Callable[[FunctionStatus], bool]) -> FunctionStatus:
        """The function's status once it is as wanted."""
        give_up = time.monotonic() + WAIT_S
        while True:
            try:
                status = self.status(name)
                if wanted(status):
                    return status
            except (StorageUnavailable, InsufficientWorkers, DataLossError, StopIteration):
                status = None
            if time.monotonic() > give_up:
                raise AssertionError(f"function {name} did not get there: {status}")
            time.sleep(0.05)

    def await_busy(self) -> str:
        """The worker that runs calls, once it is the only one."""
        give_up = time.monotonic() + WAIT_S
        while len(busy := [host.worker_id for host in self.functions.hosts() if host.running]) != 1:
            assert time.monotonic() < give_up, f"calls run on {busy}"
            time.sleep(0.05)
        return busy[0]

    def await_whole(self) -> None:
        """Return once every worker's volume is there and has all it should."""
        give_up = time.monotonic() + WAIT_S
        with PoolClient(self.address) as client:
            while not _is_whole(client.status(), len(self.workers)):
                assert time.monotonic() < give_up, "the pool is not whole again"
                time.sleep(0.05)

    def await_gone(self, name: str) -> None:
        """Return once the function is not listed any more."""
        give_up = time.monotonic() + WAIT_S
        while any(one.function == name for one in self.functions.functions()):
            assert time.monotonic() < give_up, f"{name} is still there"
            time.sleep(0.05)

    def __enter__(self) -> FunctionPool:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self.functions.close()
        for process in (self.pool_process, *self.workers.values()):
            process.kill()


def _is_whole(status: PoolStatus | None, workers: int) -> bool:
    if status is None or any(work.state != "idle" for work in status.work):
        return False
    whole = [worker for worker in status.workers if worker.state == "alive" and worker.complete and worker.share > 0]
    return len(whole) == workers

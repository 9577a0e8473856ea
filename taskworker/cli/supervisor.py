"""Runs a node pool and its workers as child processes of a supervisor."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from taskworker.cli.children import PROGRAM, announcement, command_line, end_all, environment
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.terminal import Terminal
from taskworker.cli.text import one_line

_START_S = 60.0
_LAYOUT_S = 20.0
_STOP_S = 15.0
_LOOK_S = 0.3
_RESTART_S = 1.0


@dataclass(slots=True)
class _Child:
    """A child: how to start it, and its current process."""

    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    address: str = ""
    told_dead: bool = False
    restart_at_s: float = 0.0


class Supervisor:
    """Starts, watches and ends the processes.

    Args:
        terminal: where to report addresses and events.
        directory: directory for all data.
        workers: number of workers.
        listen: the pool's address.
        grace_s: see ``taskworker pool``.
        restart: whether to restart a process that dies.
        profile: (k, n) of a new pool.
        encrypts: whether the pool encrypts new files; None: as before.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        terminal: Terminal,
        directory: Path,
        *,
        workers: int,
        listen: str,
        grace_s: float,
        restart: bool,
        profile: tuple[int, int] | None,
        no_auth: bool = False,
        encrypts: bool | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock_s = clock_s
        self._terminal = terminal
        self._directory = directory
        self._restart = restart
        chosen = [] if profile is None else ["--k", str(profile[0]), "--n", str(profile[1])]
        if no_auth:
            chosen.append("--no-auth")
        if encrypts is not None:
            chosen.append("--encryption" if encrypts else "--no-encryption")
        self._pool = _Child(
            "pool", ["pool", "--dir", str(directory / "pool"), "--listen", listen, "--grace", str(grace_s), *chosen]
        )
        self._names = [f"worker_{number:03}" for number in range(1, workers + 1)]
        self._workers: list[_Child] = []

    def start(self) -> None:
        """Start all processes, wait until all workers have joined, and report their addresses.

        Raises:
            Failure: a process did not start; its output is on stderr.
        """
        from storage.system.private_paths import make_root_directory

        make_root_directory(self._directory)
        self._launch(self._pool)
        self._await(self._pool)
        for name in self._names:
            home = str(self._directory / name)
            arguments = ["worker", "--id", name, "--dir", home, "--listen", "127.0.0.1:0", "--pool", self._reached]
            child = _Child(name, arguments)
            self._workers.append(child)
            self._launch(child)
        for child in self._workers:
            self._await(child)
        self._await_layout()
        self._tell()

    def watch(self) -> None:
        """Watch the processes and report those that die, until interrupted."""
        while True:
            time.sleep(_LOOK_S)
            for child in (self._pool, *self._workers):
                self._look_after(child)

    def stop(self) -> None:
        """End all processes, the pool first, so that it does not treat its workers as lost."""
        for children in ([self._pool], self._workers):
            end_all((child.process for child in children if child.process is not None), _STOP_S)

    def _await_layout(self) -> None:
        """Wait until every worker is in the layout, which is made moments after they have joined."""
        from taskworker.client.pool import PoolClient

        give_up_at_s = self._clock_s() + _LAYOUT_S
        with PoolClient(self._reached) as client:
            while not set(self._names) <= {member.worker_id for member in client.layout().members}:
                if self._clock_s() > give_up_at_s:
                    raise Failure("the workers joined, but the pool did not add them to a layout", ExitCode.FAILED)
                time.sleep(_LOOK_S / 10)

    @property
    def _reached(self) -> str:
        """Where this machine reaches the pool."""
        from taskworker.auth.contexts import reached_here

        return reached_here(self._pool.address)

    # -- one process -----------------------------------------------------------------------------

    def _launch(self, child: _Child) -> None:
        # In a new session, so that Ctrl-C only reaches the supervisor, which ends the others in order.
        child.process = subprocess.Popen(
            [*PROGRAM, *child.arguments, "--supervised", "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=environment(),
        )
        child.told_dead = False

    def _await(self, child: _Child) -> None:
        """Wait for the announcement of a process that was started."""
        assert child.process is not None
        overdue = threading.Timer(_START_S, child.process.kill)
        overdue.start()
        try:
            announced = announcement(child.process)
        finally:
            overdue.cancel()
        if announced is None:
            raise Failure(f"{child.name} did not start; its output is above", ExitCode.FAILED)
        child.address = str(announced["address"])
        if child is self._pool:
            child.arguments[child.arguments.index("--listen") + 1] = child.address  # keep it for a restart

    def _look_after(self, child: _Child) -> None:
        process = child.process
        if process is None or process.poll() is None:
            return
        if not child.told_dead:
            child.told_dead = True
            child.restart_at_s = self._clock_s() + _RESTART_S
            again = "it is started again" if self._restart else f"start it again with: {command_line(*child.arguments)}"
            self._say(f"{child.name} (process {process.pid}) ended {_how(process.returncode)}; {again}")
        elif self._restart and self._clock_s() >= child.restart_at_s:
            self._launch(child)
            self._await(child)
            self._say(
                f"{child.name} is back as process {child.process.pid if child.process else 0}, at {child.address}"
            )

    # -- words -----------------------------------------------------------------------------------

    def _tell(self) -> None:
        children = (self._pool, *self._workers)
        documents = [
            {"name": child.name, "address": child.address, "pid": child.process.pid}
            for child in children
            if child.process is not None
        ]
        lines = [
            f"{'NAME':12}  {'PROCESS':>8}  ADDRESS",
            *(f"{one['name']:12}  {one['pid']:>8}  {one['address']}" for one in documents),
            "",
            f"data in {one_line(str(self._directory))}; Ctrl-C stops all of them; the next `up` uses the data again",
        ]
        self._terminal.result({"pool": self._pool.address, "processes": documents}, *lines)
        victim = documents[-1]["pid"]
        self._terminal.note(
            f"\nTry in another terminal:\n  export TASKWORKER_POOL={self._reached}\n"
            f"  taskworker push FILE\n  taskworker status --watch\nand kill a worker or two:\n  kill -9 {victim}\n"
        )

    def _say(self, text: str) -> None:
        if self._terminal.as_json:
            self._terminal.error(text)
        else:
            self._terminal.lines(text)


def _how(code: int) -> str:
    if code < 0:
        return f"by signal {signal.Signals(-code).name}"
    return f"with exit code {code}"

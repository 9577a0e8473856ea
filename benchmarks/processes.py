"""Child processes: tasks whose peak memory is measured, and servers.

Peak memory is the kernel's high-water mark of the process's resident set (VmHWM), which includes pages of mapped files.
The anonymous part (RssAnon), which the process itself holds, is sampled as well.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SAMPLE_INTERVAL_S = 0.02
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Highest resident memory of a process, in bytes."""

    resident: int
    anonymous: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The values that a task returned, and its peak memory."""

    values: Mapping[str, float]
    memory: PeakMemory


class MemoryWatch:
    """Samples the memory of a running process until stopped."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._resident = self._anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak(self) -> PeakMemory:
        """Return the peaks so far."""
        self._sample()
        return PeakMemory(self._resident, self._anonymous)

    def stop(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        try:
            fields = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
        except (OSError, ValueError):
            return
        if "VmHWM" in fields:
            self._resident = max(self._resident, _kibibytes(fields["VmHWM"]))
            self._anonymous = max(self._anonymous, _kibibytes(fields["RssAnon"]))


class TaskFailed(Exception):
    """A child process failed; the text says how, with its error output if there is any."""


def run_task(
    name: str, arguments: Mapping[str, object], on_progress: Callable[[int, int], None] | None = None
) -> Outcome:
    """Run one of ``benchmarks.tasks`` in a fresh process and return its outcome.

    Raises:
        TaskFailed: the process ended without a result.
    """
    command = [sys.executable, "-m", "benchmarks.tasks", name, json.dumps(arguments, default=str)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watch = MemoryWatch(process.pid)
        try:
            outcome = _follow(process, watch, on_progress)
        finally:
            watch.stop()
            if process.poll() is None:
                process.terminate()
            errors = process.stderr.read() if process.stderr else ""
            process.wait()
    if outcome is None:
        raise TaskFailed(f"task {name} ended with status {process.returncode}:\n{errors}")
    return outcome


def _follow(
    process: subprocess.Popen[str], watch: MemoryWatch, on_progress: Callable[[int, int], None] | None
) -> Outcome | None:
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        if "done" in message:
            if on_progress is not None:
                on_progress(int(message["done"]), int(message["total"]))
        else:
            seen = watch.peak()
            resident = max(seen.resident, int(message.pop("peak_resident")))
            return Outcome(message, PeakMemory(resident, seen.anonymous))
    return None


class ServerProcess:
    """A server in its own process. It must print its port, and end when its standard input is closed.

    Args:
        module: the module to run with ``python -m``.
        arguments: arguments for the module.
        checkout: a directory with another version of this repository, whose modules are to be run.
    """

    def __init__(self, module: str, *arguments: object, checkout: Path | None = None) -> None:
        self._command = [sys.executable, "-m", module, *map(str, arguments)]
        self._checkout = checkout

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self._checkout
        )
        assert self._process.stdout is not None
        first_line = self._process.stdout.readline().strip()
        if not first_line.isdigit():
            self._end()
            raise TaskFailed(f"{self._command[2]} did not start")
        self.address = f"127.0.0.1:{first_line}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def peak_resident(self) -> int:
        """The server's peak resident memory so far, in bytes."""
        return peak_resident(self.pid)

    def kill(self) -> None:
        """Kill the server as a crash would, and wait for its end."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop the server with SIGSTOP: it keeps its connections, and does nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a stopped server run again."""
        self._process.send_signal(signal.SIGCONT)

    def run(self, task: str, **arguments: object) -> dict[str, Any]:
        """Run a task of a server that obeys (see :func:`obey`), and return its outcome."""
        tell(self._process, task, **arguments)
        return outcome_of(self._process)

    def _end(self) -> None:
        end_by_input(self._process)


class WatchedServer(ServerProcess):
    """A server whose anonymous memory is sampled as well."""

    def __enter__(self) -> Self:
        super().__enter__()
        self._watch = MemoryWatch(self.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.stop()
        super().__exit__(kind, error, trace)

    @property
    def memory(self) -> PeakMemory:
        """The server's peak memory so far."""
        return self._watch.peak()


def tell(process: subprocess.Popen[str], task: str, **arguments: object) -> None:
    """Tell a process that obeys (see :func:`obey`) to run a task."""
    assert process.stdin is not None
    print(json.dumps([task, arguments], default=str), file=process.stdin, flush=True)


def outcome_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the outcome of a task.

    Raises:
        TaskFailed: the process ended without one.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise TaskFailed(f"a client ended with status {process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


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


def end_by_input(process: subprocess.Popen[str]) -> None:
    """End a process by closing its standard input; kill it if it takes too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


@contextmanager
def started_together(servers: Sequence[AbstractContextManager[object]]) -> Iterator[None]:
    """Run all of ``servers``. They are started at the same time, as each takes a while."""
    with ExitStack() as stack:
        with ThreadPoolExecutor(len(servers)) as threads:
            for entered in [threads.submit(stack.enter_context, server) for server in servers]:
                entered.result()
        yield


def own_peak_resident() -> int:
    """Return the peak resident memory (VmHWM) of this process, in bytes."""
    return peak_resident("self")


def peak_resident(pid: int | str) -> int:
    """Return the peak resident memory (VmHWM) of a process, in bytes; 0 if there is no such process any more."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((_kibibytes(line.partition(":")[2]) for line in lines if line.startswith("VmHWM")), 0)


def _kibibytes(text: str) -> int:
    return int(text.split()[0]) * 1024

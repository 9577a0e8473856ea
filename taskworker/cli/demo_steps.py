"""The steps of the demo, run with the real commands as separate processes."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from taskworker.cli.children import PROGRAM, announcement, command_line, end_all, environment
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.text import pace_text, size_text

_LOST_WORKERS = ("worker_002", "worker_005")  # any two would do
_GRACE_S = 4.0  # far shorter than in normal use, so that the demo need not wait
_ARCHIVE_SIZE_MAX = 256 << 20
_MEND_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0
_LOOK_S = 0.2


class Demo:
    """Runs the demo in an empty directory, and prints what it does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._original = directory / "python.tar"
        self._back = directory / "back.tar"
        self._step = 0
        self._returned: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Start a pool, push, kill two workers, get, watch the repair, and start the two workers again.

        Raises:
            Failure: a command failed, or returned other bytes than were stored.
        """
        self._title("A real file: Python's standard library, as one tar archive")
        _make_archive(self._original)
        before = self._told_digest(self._original)
        self._title("A node pool and six workers, each a process of its own")
        with self._cluster() as cluster:
            self._title(
                "The file is pushed: cut into chunks, and each chunk coded into six shards, of which any four suffice"
            )
            push_s = self._call(cluster.address, "push", self._original.name)
            self._title("Two workers are killed")
            killed_at = time.perf_counter()
            for name in _LOST_WORKERS:
                self._show(f"kill -9 {cluster.pids[name]}    # {name}")
                os.kill(cluster.pids[name], signal.SIGKILL)
            self._title("The file is read back from the other four, and compared byte for byte")
            get_s = self._call(cluster.address, "get", self._original.name, "-o", self._back.name)
            if self._told_digest(self._back) != before or not filecmp.cmp(self._original, self._back, shallow=False):
                raise Failure("the file that was read back is not the one that was stored", ExitCode.DATA_LOSS)
            self._say("byte for byte the same")
            self._title("Without a command, the pool rebuilds the lost shards on the four workers that are left")
            self._watch(cluster.address, until=1)
            mend_s = time.perf_counter() - killed_at
            self._title("The two workers start again with their old shards, and get only what they missed")
            for name in _LOST_WORKERS:
                self._start_again(cluster.address, name)
            self._watch(cluster.address, until=2)
            self._call(cluster.address, "status")
        self._sum_up(push_s, get_s, mend_s)

    def _sum_up(self, push_s: float, get_s: float, mend_s: float) -> None:
        size = self._original.stat().st_size
        self._title("What happened")
        self._say(f"stored    {size_text(size)} through the pool, durable on six workers: {pace_text(size, push_s)}")
        self._say(f"got back  the same {size_text(size)} from the four left: {pace_text(size, get_s)}")
        self._say(f"repaired  by itself, {mend_s:.1f} s after the two were killed: one more could now be lost")
        self._say("(times are of whole commands, including the start of Python and gRPC)")
        self._say("")
        self._say("Next, start a pool of your own, which keeps its data:")
        self._say(f"  {_script()} up")
        self._say("and in another terminal:")
        self._say(f"  {_script()} push FILE")
        self._say(f"  {_script()} status --watch")

    def _told_digest(self, path: Path) -> str:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._say(f"{path.name}: {size_text(path.stat().st_size)}, sha256 {digest}")
        return digest

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[_Running]:
        """A running pool and its workers, which are interrupted when the block ends."""
        arguments = ["up", "--dir", "cluster", "--listen", "127.0.0.1:0", "--grace", f"{_GRACE_S:g}"]
        self._show(command_line(*arguments))
        process = subprocess.Popen(
            [*PROGRAM, *arguments, "--json"],
            cwd=self._directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it would report the deaths that this demo causes
            env=environment(),
        )
        try:
            running = _announced(process)
            for name, pid in running.pids.items():
                self._say(f"{name:11} process {pid}")
            yield running
        finally:
            end_all((*self._returned, process), _STOP_TIMEOUT_S)

    def _start_again(self, address: str, name: str) -> None:
        """Restart a killed worker as a user would."""
        arguments = ["worker", "--id", name, "--dir", f"cluster/{name}", "--listen", "127.0.0.1:0"]
        self._show(command_line(*arguments, "--pool", address))
        self._returned.append(
            subprocess.Popen(
                [*PROGRAM, *arguments, "--pool", address, "--json"],
                cwd=self._directory,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
            )
        )

    def _watch(self, address: str, until: int) -> float:
        """Show the pool's health until the loss of any ``until`` workers is survivable; return the seconds it took."""
        from taskworker.client.pool import PoolClient

        self._show(command_line("status", "--watch", "--pool", address) + "    # its first line, as it changes")
        started = time.perf_counter()
        told = ""
        with PoolClient(address) as client:
            while time.perf_counter() - started < _MEND_TIMEOUT_S:
                status = client.status()
                if status is None:
                    break
                if status.health != told:
                    told = status.health
                    self._say(f"{time.perf_counter() - started:5.1f} s  {told}")
                if status.workers_survivable >= until and not status.is_mending:
                    return time.perf_counter() - started
                time.sleep(_LOOK_S)
        raise Failure(f"the pool was not repaired in time: {told}")

    def _call(self, address: str, *arguments: str) -> float:
        """Run a command as a user would, and return how long it took."""
        name, *rest = arguments
        command = (name, "--pool", address, *rest)
        self._show(command_line(*command))
        started = time.perf_counter()
        ended = subprocess.run([*PROGRAM, *command], cwd=self._directory, env=environment(), check=False)
        if ended.returncode != ExitCode.OK:
            raise Failure(f"`taskworker {name}` ended with exit code {ended.returncode}")
        return time.perf_counter() - started

    def _title(self, text: str) -> None:
        self._step += 1
        self._say(f"\n{self._step}. {text}")

    def _show(self, command: str) -> None:
        self._say(f"$ {command}")

    def _say(self, text: str) -> None:
        # Flush, since the output of the commands goes to the same place.
        print(text, flush=True)


def _make_archive(path: Path) -> None:
    """Make an archive of the standard library and the installed packages."""
    with tarfile.open(path, "w") as archive:
        for key in ("stdlib", "purelib"):
            root = Path(sysconfig.get_path(key))
            for file in sorted(root.rglob("*")):
                with contextlib.suppress(OSError):  # some files of a system's Python are readable only by root
                    archive.add(file, arcname=str(Path(key) / file.relative_to(root)), recursive=False)
                if path.stat().st_size > _ARCHIVE_SIZE_MAX:
                    return


@dataclass(frozen=True, slots=True)
class _Running:
    """A running pool: its address, and its processes by name."""

    address: str
    pids: dict[str, int]


def _announced(process: subprocess.Popen[bytes]) -> _Running:
    """The announcement that `up` prints once everything is running."""
    document = announcement(process)
    if document is None:
        raise Failure("the pool did not start")
    return _Running(document["pool"], {one["name"]: one["pid"] for one in document["processes"]})


def _script() -> str:
    """How the reader can call this command line."""
    script = Path(sys.executable).with_name("taskworker")
    if not script.exists() or shutil.which("taskworker") == str(script):
        return "taskworker"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)

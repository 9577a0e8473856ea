"""The main job, shown with the real commands in processes of their own."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.text import pace_text, size_text

_LOST_VOLUMES = (1, 4)  # any two would do
_ARCHIVE_SIZE_MAX = 256 << 20
_STOP_TIMEOUT_S = 30.0
_PROGRAM = (sys.executable, "-m", "taskworker")


class Demonstration:
    """Runs in ``directory``, which is empty, and prints what it does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._original = directory / "python.tar"
        self._back = directory / "back.tar"
        self._step = 0

    def run(self) -> None:
        """Serve, push, lose two volumes, get, repair.

        Raises:
            Failure: a command failed, or gave something else than was stored.
        """
        self._title("A real file: this Python's own library, as one tar archive")
        _make_archive(self._original)
        before = self._told_digest(self._original)
        self._title("A server on a new store of six volumes; the file goes there through gRPC")
        with self._server() as address:
            push_s = self._call(address, "push", self._original.name)
            self._call(address, "ls")
        self._title("Two of the six volumes are destroyed while the server is down")
        for slot in _LOST_VOLUMES:
            self._show(f"rm -r store/volumes/{slot}")
            shutil.rmtree(self._directory / "store" / "volumes" / str(slot))
        self._title("The server starts again, and the file comes back through gRPC, compared byte for byte")
        with self._server() as address:
            get_s = self._call(address, "get", self._original.name, "-o", self._back.name)
            if self._told_digest(self._back) != before or not filecmp.cmp(self._original, self._back, shallow=False):
                raise Failure("the file that came back is not the one stored", ExitCode.DATA_LOSS)
            self._say("byte for byte the same")
            self._title("Repair fills the two empty volumes; scrub verifies every shard of all six")
            repair_s = self._call(address, "repair")
            self._call(address, "scrub")
            self._call(address, "status")
        self._sum_up(push_s, get_s, repair_s)

    def _sum_up(self, push_s: float, get_s: float, repair_s: float) -> None:
        size = self._original.stat().st_size
        self._title("What happened")
        self._say(f"stored    {size_text(size)} through gRPC, durable on six volumes: {pace_text(size, push_s)}")
        self._say(f"got back  the same {size_text(size)} from four of the six: {pace_text(size, get_s)}")
        self._say(f"repaired  in {repair_s:.2f} s; any two volumes may be lost again")
        self._say("(times of whole commands, the start of Python and gRPC included)")
        self._say("")
        self._say("Next, a store of your own:")
        self._say(f"  {_script()} --store ./data serve")
        self._say("and in another terminal:")
        self._say(f"  {_script()} push FILE")

    def _told_digest(self, path: Path) -> str:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._say(f"{path.name}: {size_text(path.stat().st_size)}, sha256 {digest}")
        return digest

    @contextlib.contextmanager
    def _server(self) -> Iterator[str]:
        """A server process on a free port; stopped like by Ctrl-C when the block ends."""
        arguments = ["--store", "store", "serve", "--listen", "127.0.0.1:0"]
        self._show(_command_line(*arguments))
        process = subprocess.Popen(
            [*_PROGRAM, *arguments, "--json"], cwd=self._directory, stdout=subprocess.PIPE, env=_environment()
        )
        try:
            address = _announced_address(process)
            self._say(f"serving at {address}")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _call(self, address: str, *arguments: str) -> float:
        """Run one command as a user would; answer how long it took."""
        name, *rest = arguments
        command = (name, "--pool", address, *rest)
        self._show(_command_line(*command))
        started = time.monotonic()
        ended = subprocess.run([*_PROGRAM, *command], cwd=self._directory, env=_environment(), check=False)
        if ended.returncode != ExitCode.OK:
            raise Failure(f"`taskworker {name}` ended with exit code {ended.returncode}")
        return time.monotonic() - started

    def _title(self, text: str) -> None:
        self._step += 1
        self._say(f"\n{self._step}. {text}")

    def _show(self, command: str) -> None:
        self._say(f"$ {command}")

    def _say(self, text: str) -> None:
        # Flushed, since the commands' own output goes to the same place.
        print(text, flush=True)


def _make_archive(path: Path) -> None:
    """Pack the standard library and what is installed beside the project."""
    with tarfile.open(path, "w") as archive:
        for key in ("stdlib", "purelib"):
            root = Path(sysconfig.get_path(key))
            for file in sorted(root.rglob("*")):
                with contextlib.suppress(OSError):  # some files of a system's Python are root's alone
                    archive.add(file, arcname=str(Path(key) / file.relative_to(root)), recursive=False)
                if path.stat().st_size > _ARCHIVE_SIZE_MAX:
                    return


def _announced_address(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    announced = os.read(process.stdout.fileno(), 4096)
    if not announced:
        raise Failure("the server did not start")
    return str(json.loads(announced)["address"])


def _command_line(*arguments: str) -> str:
    return shlex.join(("taskworker", *arguments))


def _script() -> str:
    """How the reader can call the command line that this is."""
    script = Path(sys.executable).with_name("taskworker")
    if not script.exists() or shutil.which("taskworker") == str(script):
        return "taskworker"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TASKWORKER_")}

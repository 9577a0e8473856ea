"""A reader who follows pages of the documentation in a directory of his own, with real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.docs.output import likened
from tests.docs.pages import Step, steps

ROOT = Path(__file__).parents[2]
DEFAULT_ADDRESS = "127.0.0.1:50051"
TIMEOUT_S = 120.0  # against hanging; nothing here depends on speed


class Reader:
    """Does what pages say; a context manager that ends all processes which it started.

    The address that the documentation has, which others may be using, is a socket file of the reader's own here.
    """

    def __init__(self, directory: Path) -> None:
        self._home = directory / "home"
        self._home.mkdir(parents=True)
        programs = directory / "bin"
        programs.mkdir()
        (programs / "taskworker").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m taskworker "$@"\n')
        (programs / "taskworker").chmod(0o755)
        self._logs = directory / "logs"
        self._logs.mkdir()
        self._address = f"unix:{directory}/pool"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKWORKER_")}
        self._environment = inherited | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TASKWORKER_POOL": self._address,
            "TASKWORKER_USER": "ann",
            "XDG_DATA_HOME": str(directory / "data"),
            "XDG_STATE_HOME": str(directory / "state"),
        }
        self._learned = {DEFAULT_ADDRESS: self._address}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for process in self._running.values():  # pools first, as they were started first
            process.terminate()
        for process in self._running.values():
            process.wait(TIMEOUT_S)

    def follow(self, page: str) -> None:
        """Do all that a page of ``docs/`` says, and see that it comes out as it says."""
        for step in steps(page):
            if not step.language:
                self._act(step)
            elif step.is_run and step.language == "python":
                self._run_python(step)
            elif step.is_run:
                self._run_console(step)

    def _act(self, step: Step) -> None:
        action, _, name = step.remark.partition(": ")
        process = self._running.pop(name)
        if action == "stop":
            process.terminate()
        else:
            process.kill()
        process.wait(TIMEOUT_S)
        if action != "stop":
            shutil.rmtree(self._home / action.removeprefix("kill and lose "))

    def _run_python(self, step: Step) -> None:
        code = "\n".join(step.lines) + "\n"
        if step.title:
            (self._home / step.title).write_text(code)
            return
        ended = self._ended([sys.executable, "-c", self._translated(code)])
        assert ended.returncode == 0, f"{step.place}: {ended.stdout}"

    def _run_console(self, step: Step) -> None:
        if step.remark.startswith("in background: "):
            ((command, shown),) = step.commands
            self._start(step, step.remark.removeprefix("in background: "), command, shown)
            return
        for command, shown in step.commands:
            self._run(step, command, shown)

    def _run(self, step: Step, command: str, shown: list[str]) -> None:
        code = int(step.remark.removeprefix("exit code: ")) if step.remark.startswith("exit code: ") else 0
        give_up = time.monotonic() + TIMEOUT_S
        while True:
            ended = self._ended(["bash", "-c", self._translated(command)])
            if ended.returncode == code and self._learns(shown, ended.stdout):
                return
            may_come = step.remark == "until it matches" and time.monotonic() < give_up
            assert may_come, f"{step.place}: `{command}` ended with {ended.returncode} and printed\n{ended.stdout}"
            time.sleep(0.5)  # each attempt starts a program

    def _start(self, step: Step, name: str, command: str, shown: list[str]) -> None:
        log = self._logs / name
        if command.startswith(("taskworker up", "taskworker pool")):
            command += f" --listen {DEFAULT_ADDRESS}"
        with log.open("wb") as output:
            process = self._running[name] = subprocess.Popen(
                ["bash", "-c", f"exec {self._translated(command)}"],
                cwd=self._home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
            )
        give_up = time.monotonic() + TIMEOUT_S
        while not (log.stat().st_size and self._learns(shown, log.read_text())):
            may_come = process.poll() is None and time.monotonic() < give_up
            assert may_come, f"{step.place}: `{command}` printed\n{log.read_text()}"
            time.sleep(0.05)

    def _ended(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self._home,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def _learns(self, shown: list[str], printed: str) -> bool:
        """Whether this was to be printed; if so, the ids and process numbers in it are used from now on."""
        learned = likened(shown, printed)
        self._learned |= {one: other for one, other in (learned or {}).items() if one != DEFAULT_ADDRESS}
        return learned is not None

    def _translated(self, text: str) -> str:
        """The documentation's words with this reader's own address, ids and process numbers."""
        for one, other in self._learned.items():
            text = text.replace(one, other)
        return text

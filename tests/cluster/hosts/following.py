"""Readers who follow a page of the documentation on machines of their own: a pool, workers, and a user.

What the page shows for ``worker1`` is done for each worker where the page says so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.hosts.network import Hosts
from tests.docs.output import likened
from tests.docs.pages import Step, steps

PAGE = "how-to/three-machines.md"
POOL = "pool.example.org"
WORKERS = 6
USER = 1 + WORKERS
"""The number of the user's machine; the pool's is 0, and worker N's is N."""
NAMES = (POOL, *(f"worker{number}" for number in range(1, WORKERS + 1)), "user")
_ROOT = Path(__file__).parents[3]
_ON = re.compile(r"on (each worker|worker(\d)|pool|user)(, for each worker)?(?:, (.+))?")
_TIMEOUT_S = 300.0  # against hanging; nothing here depends on speed
_PROMPT = "Token:"


class Following:
    """Does what the page says; a context manager that ends all processes which it started.

    Args:
        hosts: the machines, named ``NAMES``.
        logs: where output of processes goes.
        more: further options, by the first words of the commands that get them.
    """

    def __init__(self, hosts: Hosts, logs: Path, more: dict[str, str] | None = None) -> None:
        self.hosts = hosts
        self._logs = logs
        self._more = more or {}
        self._programs = logs / "bin"
        self._programs.mkdir(parents=True)
        (self._programs / "taskworker").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m taskworker "$@"\n')
        (self._programs / "taskworker").chmod(0o755)
        self.learned: dict[str, dict[str, str]] = {}
        """What stands in place of what the page shows, by worker; "": for all."""
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def follow(self, before: Callable[[str], None] = lambda _: None) -> None:
        """Do all that the page says, and see that it comes out as it says; call ``before`` with each command first."""
        for step in steps(PAGE):
            if step.remark.startswith("off: "):
                for name in step.remark.removeprefix("off: ").split(", "):
                    process = self._running.pop(name)
                    process.kill()
                    process.wait()
            elif step.is_run:
                self._do(step, before)

    def log(self, name: str) -> str:
        """What a process wrote: ``pool``, or a worker's name."""
        return (self._logs / f"{name}.log").read_text()

    def run(self, number: int, command: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        """Run a line of a shell on a machine."""
        return subprocess.run(
            self._shell(number, command),
            env=self._environment(),
            input=answer,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )

    def _do(self, step: Step, before: Callable[[str], None]) -> None:
        on = _ON.fullmatch(step.remark)
        assert on is not None, f"{step.place}: on which machine? {step.remark!r}"
        where, number, for_each, manner = on.groups()
        if where == "each worker" or for_each:
            todo = [(0 if for_each else each, f"worker{each}") for each in range(1, WORKERS + 1)]
        else:
            todo = [({"pool": 0, "user": USER}.get(where) or int(number or 0), f"worker{number}" if number else "")]
        for command, shown in step.commands:
            before(command)
            with ThreadPoolExecutor() as threads:
                for done in [threads.submit(self._one, step, *each, command, shown, manner or "") for each in todo]:
                    done.result()

    def _one(self, step: Step, number: int, worker: str, command: str, shown: list[str], manner: str) -> None:
        shown = [self._for(worker, line) for line in shown]
        command = self._for(worker, command)
        if manner.startswith("in background: "):
            self._start(step, number, worker or manner.removeprefix("in background: "), command, shown)
            return
        answer = ""
        if shown and shown[0] == _PROMPT:
            answer, shown = self._translated(worker, "twu1.…"), shown[1:]
        give_up = time.monotonic() + _TIMEOUT_S
        while True:
            ended = self.run(number, self._translated(worker, command), answer)
            if ended.returncode == 0 and self._learns(worker, shown, ended.stdout):
                return
            may_come = manner == "until it matches" and time.monotonic() < give_up
            assert may_come, f"{step.place}: `{command}` ended with {ended.returncode} and printed\n{ended.stdout}"
            time.sleep(0.1)

    def _start(self, step: Step, number: int, name: str, command: str, shown: Sequence[str]) -> None:
        log = self._logs / f"{name}.log"
        told = self._logs / f"{name}.out"
        for beginning, more in self._more.items():
            if beginning in command:
                command += f" {more}"
        with told.open("wb") as output, log.open("ab") as errors:
            process = self._running[name] = subprocess.Popen(
                self._shell(number, f"exec env {self._translated(name, command)}"),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        give_up = time.monotonic() + _TIMEOUT_S
        while not (told.stat().st_size and self._learns(name, shown, told.read_text())):
            may_come = process.poll() is None and time.monotonic() < give_up
            assert may_come, f"{step.place}: `{command}` printed\n{told.read_text()}{log.read_text()}"
            time.sleep(0.05)

    def _shell(self, number: int, command: str) -> list[str]:
        # The disk of the machine is its home as well.
        return [*self.hosts.inside(number), "env", "-C", "/srv", "bash", "-c", command]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKWORKER_", "XDG_"))}
        path = f"{self._programs}:{os.environ['PATH']}"
        return kept | {"PATH": path, "PYTHONPATH": str(_ROOT), "HOME": "/srv"}

    def _for(self, worker: str, text: str) -> str:
        return text.replace("worker1", worker) if worker else text

    def _learns(self, worker: str, shown: Sequence[str], printed: str) -> bool:
        found = likened(shown, printed)
        if found is None:
            return False
        for one, other in found.items():
            kept = self.learned.setdefault(worker if one.startswith("tw1.") else "", {})
            kept[one] = other
        return True

    def _translated(self, worker: str, text: str) -> str:
        for one, other in self._pairs(worker):
            text = text.replace(one, other)
        return text

    def _pairs(self, worker: str) -> Iterator[tuple[str, str]]:
        for key in dict.fromkeys((worker, "")):
            yield from self.learned.get(key, {}).items()

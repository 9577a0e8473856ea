"""Ray for comparison with functions, if there is an interpreter that has it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.processes import TaskFailed, end_by_input

_SCRIPT = Path(__file__).with_name("ray_tasks.py")


def interpreter(named: str | None) -> str | None:
    """Return the interpreter to use for Ray: ``named`` or, if that is None, this one if it has Ray."""
    if named is None and importlib.util.find_spec("ray") is not None:
        return sys.executable
    return named


class RayTasks:
    """A driver of Ray in its own process.

    Args:
        python: an interpreter that has Ray.

    Attributes:
        version: version of Ray.
    """

    def __init__(self, python: str) -> None:
        self._python = python
        self.version = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [self._python, str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )
        try:
            self.version = self._line()["version"]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def latencies_ms(self, count: int) -> list[float]:
        """Run ``count`` tasks one after another; return the milliseconds of each."""
        milliseconds: list[float] = self._asked(count=count)["milliseconds"]
        return milliseconds

    def rate(self, callers: int, seconds: float) -> float:
        """Run tasks from ``callers`` threads, each with one task at a time; return the tasks per second."""
        found = self._asked(callers=callers, seconds=seconds)
        return float(found["calls"] / found["seconds"])

    def _asked(self, **what: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TaskFailed(f"{self._python} cannot run tasks of Ray; try: {self._python} {_SCRIPT}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _end(self) -> None:
        end_by_input(self._process)

"""Starts and ends child processes that run this same command line."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

PROGRAM = (sys.executable, "-m", "taskworker")


def command_line(*arguments: str) -> str:
    """A command line as a person would type it."""
    return shlex.join(("taskworker", *arguments))


def environment() -> dict[str, str]:
    """The environment of children: without the variables that set options."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TASKWORKER_")}


def announcement(process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """The JSON document that a process prints once it is ready; None if it ends first."""
    assert process.stdout is not None
    told = b""
    while piece := os.read(process.stdout.fileno(), 4096):
        told += piece
        try:
            document: dict[str, Any] = json.loads(told)
        except ValueError:
            continue
        return document
    return None


def end_all(processes: Iterable[subprocess.Popen[bytes]], timeout_s: float) -> None:
    """Interrupt all processes at once, as Ctrl-C would; kill those that take longer than ``timeout_s`` seconds."""
    running = list(processes)
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

"""The command line, as an operator would use it."""

from __future__ import annotations

import os
import subprocess
import sys


def bare_interpreter() -> None:
    """Start Python, import gRPC, and end: what every command takes on this machine before it does anything."""
    subprocess.run([sys.executable, "-c", "import grpc"], check=True)


def status_command(address: str) -> str:
    """What `taskworker status` prints of a pool."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKWORKER_")}
    command = [sys.executable, "-m", "taskworker", "status", "--pool", address]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

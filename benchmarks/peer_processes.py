"""What the peers share: their processes, ports and failures."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.processes import STOP_TIMEOUT_S

SERVERS = 6
HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 600.0
POLL_S = 0.1


class PeerFailed(Exception):
    """A peer cannot be run here, or failed; the text says why."""


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nothing used a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def await_ready(what: str, condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` is true.

    Raises:
        PeerFailed: it was not, within `START_TIMEOUT_S`.
    """
    until = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            raise PeerFailed(f"{what} did not start within {START_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)


def run_command(*command: str) -> None:
    """Run a program to its end.

    Raises:
        PeerFailed: it failed, or took longer than `COMMAND_TIMEOUT_S`.
    """
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"{command[0]} did not end within {COMMAND_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise PeerFailed(f"{Path(command[0]).name} {command[1]} failed: {last}")


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end; kill it if it takes longer than `STOP_TIMEOUT_S`."""
    assert process.stdin is not None
    process.stdin.close()
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""A self-test that tries what a sandbox must prevent, run when a worker starts.

Its result names the attempts that succeeded, one per line. It should be empty.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from taskworker.sandbox.inside import kernel
from taskworker.sandbox.inside.channel import Channel

_PTRACE_TRACEME = 0


def prepare(document: bytes) -> None:
    """Do nothing: the self-test has no user code."""


def run(_request: bytes, _channel: Channel) -> bytes:
    """Make all attempts; return the names of those that succeeded."""
    return "\n".join(name for name, worked in _attempts() if _works(worked)).encode()


def _attempts() -> Iterator[tuple[str, Callable[[], object]]]:
    libc = ctypes.CDLL(None, use_errno=True)
    yield "reading /etc/shadow", Path("/etc/shadow").read_bytes
    yield "knowing the root of this machine", lambda: _some([line for line in _users() if "root" in line])
    yield "listing /bundles", lambda: os.listdir("/bundles")
    yield "seeing files of other calls", lambda: _some(os.listdir("/tmp"))
    yield "changing the root directory", lambda: os.chroot(".")
    yield "writing to /code", lambda: Path("/code/x").write_bytes(b"x")
    yield "changing the mode of a device", lambda: Path("/dev/null").chmod(0o666)
    yield "changing the times of a device", lambda: os.utime("/dev/null")
    yield "opening a socket", lambda: socket.socket(socket.AF_INET)
    yield "forking", os.fork
    yield "executing a program", lambda: os.execv("/python/bin/python3", ["python3"])
    yield "making a namespace", lambda: kernel.unshare(kernel.CLONE_NEWUSER)
    yield "mounting", lambda: kernel.mount("none", "/tmp", "tmpfs", 0)
    yield "sending a signal", lambda: os.kill(1, 0)
    yield "tracing", lambda: _checked(libc.ptrace(_PTRACE_TRACEME, 0, 0, 0))


def _works(attempt: Callable[[], object]) -> bool:
    try:
        made = attempt()
    except OSError:
        return False
    if attempt is os.fork and made == 0:
        os._exit(0)
    return True


def _users() -> list[str]:
    return Path("/etc/passwd").read_text().splitlines()


def _some(found: list[str]) -> None:
    if not found:
        raise FileNotFoundError


def _checked(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), "refused")

"""A bound on processes for workers that run as root, whom RLIMIT_NPROC does not bind.

Needed only before Linux 6.14, since which a pid namespace has a bound of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

from taskworker.sandbox.errors import SandboxUnavailable

_ROOT = Path("/sys/fs/cgroup")
_REMOVE_TIMEOUT_S = 5.0
_REFUSAL = (
    "this worker runs as root, whose processes this kernel cannot bound: run it as an ordinary user, use "
    "Linux 6.14 or later, or give it a writable cgroup with the pids controller"
)


class PidsCgroup:
    """A cgroup of this worker's, in which each function gets one of its own.

    Raises:
        SandboxUnavailable: it cannot be made; the text says what to do.
    """

    def __init__(self) -> None:
        try:
            self._directory = _parent() / f"taskworker-{os.getpid()}-{secrets.token_hex(4)}"
            self._directory.mkdir()
            self._unified = (_ROOT / "cgroup.controllers").exists()
            if self._unified:
                (self._directory / "cgroup.subtree_control").write_text("+pids")
        except OSError as error:
            raise SandboxUnavailable(f"{_REFUSAL} ({error})") from error

    def enclose(self, name: str, pids: tuple[int, ...], most: int) -> None:
        """Put processes, and all that they fork, into a cgroup ``name`` of at most ``most`` processes and threads."""
        group = self._directory / name
        group.mkdir()
        (group / "pids.max").write_text(str(most))
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))

    def remove(self, name: str) -> bool:
        """Remove a function's cgroup; False while something in it has not ended."""
        try:
            (self._directory / name).rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Remove everything; what was in it must be ending."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        groups = [path for path in self._directory.iterdir() if path.is_dir()]
        while groups and time.monotonic() < deadline:
            groups = [path for path in groups if not self.remove(path.name)]
            if groups:
                time.sleep(0.01)
        with contextlib.suppress(OSError):
            self._directory.rmdir()


def _parent() -> Path:
    """Give this process's own cgroup of the pids controller, in either version's hierarchy."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            return _ROOT / "pids" / path.lstrip("/")
        if not controllers and (_ROOT / "cgroup.controllers").exists():
            return _ROOT / path.lstrip("/")
    raise FileNotFoundError("the pids controller is in no cgroup hierarchy")

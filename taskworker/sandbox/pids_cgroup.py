"""A bound on the number of processes for workers run as root, to which RLIMIT_NPROC does not apply.

Needed only before Linux 6.14; since then, a pid namespace has a bound of its own.
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
    """This worker's cgroup, which contains one cgroup for each function.

    Raises:
        SandboxUnavailable: the cgroup cannot be made; the text says what to do.
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
        """Move processes, and thereby all that they fork, into a new cgroup.

        Args:
            name: name of the cgroup.
            pids: the processes.
            most: how many processes and threads the cgroup may contain.
        """
        group = self._directory / name
        group.mkdir()
        (group / "pids.max").write_text(str(most))
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))

    def remove(self, name: str) -> bool:
        """Remove a function's cgroup; return False while a process in it is still running."""
        try:
            (self._directory / name).rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Remove all cgroups. The processes in them must have been killed before."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        groups = [path for path in self._directory.iterdir() if path.is_dir()]
        while groups and time.monotonic() < deadline:
            groups = [path for path in groups if not self.remove(path.name)]
            if groups:
                time.sleep(0.01)
        with contextlib.suppress(OSError):
            self._directory.rmdir()


def _parent() -> Path:
    """Return this process's own cgroup of the pids controller, in the hierarchy of cgroups v1 or v2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            return _ROOT / "pids" / path.lstrip("/")
        if not controllers and (_ROOT / "cgroup.controllers").exists():
            return _ROOT / path.lstrip("/")
    raise FileNotFoundError("the pids controller is in no cgroup hierarchy")

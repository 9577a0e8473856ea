"""Whether the machine has room for more processes of a function: pauses while it refuses, and when to give up."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from taskworker.sandbox.errors import SandboxFull

PATIENCE_S = 5.0
"""How long a call waits for room before it is refused."""
_PAUSE_S = 0.02
_PAUSE_MAX_S = 1.0
SCARCE = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EUSERS, errno.ENOBUFS)
"""How the kernel says that there is no more of something now."""


_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bytes() -> int:
    """The memory of this machine, or of this container if it may have less."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # another version of cgroups, or no limit: "max"
            most = min(most, int(path.read_text()))
    return most


class Room:
    """Of one function. Not thread-safe: who uses it holds a lock."""

    def __init__(self) -> None:
        self._why = ""
        self._since = self._until = 0.0
        self._pause_s = _PAUSE_S

    def refused(self, why: str) -> float:
        """Note that there was none; give the seconds after which to try again."""
        now = time.monotonic()
        if not self._why:
            self._since = now
        self._why = why
        if now >= self._until:  # several that were refused at once make one pause
            self._until = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        return self._until - now

    def given(self) -> None:
        """Note that there was some."""
        self._why, self._pause_s = "", _PAUSE_S

    @property
    def pausing(self) -> bool:
        """Whether nothing is to be tried now."""
        return bool(self._why) and time.monotonic() < self._until

    def require(self, waiting_since: float) -> None:
        """Let a caller go on waiting.

        Raises:
            SandboxFull: it has waited for long, and there has been no room all the time.
        """
        if self._why and time.monotonic() - max(waiting_since, self._since) >= PATIENCE_S:
            raise SandboxFull(self._why)

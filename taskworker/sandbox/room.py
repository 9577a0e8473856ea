"""Backoff while the machine has no room for another process of a function, and when a waiting call gives up."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from taskworker.sandbox.errors import SandboxError, SandboxFull, SandboxUnavailable

PATIENCE_S = 5.0
"""How long a call waits for room before it is refused."""
_PAUSE_S = 0.02
_PAUSE_MAX_S = 1.0
SCARCE = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EUSERS, errno.ENOBUFS)
"""Errors by which the kernel reports that a resource is used up for now."""


_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bytes() -> int:
    """Return the memory of this machine, or of this container if its limit is lower."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file in this version of cgroups, or no limit: "max"
            most = min(most, int(path.read_text()))
    return most


def start_failure(said: str) -> SandboxError:
    """The failure for a sandbox that could not be started.

    Args:
        said: number of the kernel's error, a space, and its text.
    """
    number, _, text = said.partition(" ")
    if number.isdecimal() and int(number) in SCARCE:
        return SandboxFull(text)
    return SandboxUnavailable(f"a function's sandbox could not be started: {text}")


class Room:
    """Refusals and pauses of one function. Not thread-safe: callers hold a lock.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._why = ""
        self._since = self._until = 0.0
        self._pause_s = _PAUSE_S

    def refused(self, why: str) -> float:
        """Note that the machine refused a process; return the seconds to wait before the next attempt."""
        now = self._clock_s()
        if not self._why:
            self._since = now
        self._why = why
        if now >= self._until:  # several refusals at once count as one pause
            self._until = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        return self._until - now

    def given(self) -> None:
        """Note that a process was made."""
        self._why, self._pause_s = "", _PAUSE_S

    @property
    def pausing(self) -> bool:
        """Whether a pause after a refusal is running."""
        return bool(self._why) and self._clock_s() < self._until

    def require(self, waiting_since: float) -> None:
        """Check whether a caller may go on waiting.

        Args:
            waiting_since: when the caller began to wait, on the monotonic clock.

        Raises:
            SandboxFull: the machine has had no room during the last `PATIENCE_S` of the caller's wait.
        """
        if self._why and self._clock_s() - max(waiting_since, self._since) >= PATIENCE_S:
            raise SandboxFull(self._why)

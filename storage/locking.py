"""One process owns a store directory: an advisory lock that ends with the process, also if it has forked."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from storage.descriptors import occupy_standard_descriptors
from storage.errors import StoreLocked
from storage.forks import HomeProcess, private_descriptors


class StoreLock:
    """Holds ``LOCK`` in a store directory.

    Raises:
        StoreLocked: another process (or another opening in this one) holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "LOCK"
        self._home = HomeProcess(f"the lock of {directory}")
        occupy_standard_descriptors()
        self._fd = private_descriptors.open(self._path, os.O_RDWR | os.O_CREAT, 0o640)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            private_descriptors.close(self._fd)
            raise StoreLocked(
                f"the store at {directory} is in use by process {owner}; stop it, or talk to its server instead"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others in. In a forked child this does nothing: the lock is the parent's."""
        if self._fd >= 0 and self._home.is_here:
            private_descriptors.close(self._fd)
        self._fd = -1

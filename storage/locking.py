"""One process owns a store directory: an advisory lock that ends with the process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from storage.errors import StoreLocked


class StoreLock:
    """Holds ``LOCK`` in a store directory.

    Raises:
        StoreLocked: another process (or another opening in this one) holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "LOCK"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise StoreLocked(
                f"the store at {directory} is in use by process {owner}; stop it, or talk to its server instead"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others in."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""An advisory lock that gives one process a store directory; it ends with the process, even after forks."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path

from storage.errors import StoreLocked, StoreUnavailable
from storage.system.descriptors import occupy_standard_descriptors
from storage.system.faults import Fault, fault_of
from storage.system.forks import HomeProcess, private_descriptors

log = logging.getLogger(__name__)


class StoreLock:
    """Holds ``LOCK`` in a store directory.

    On a read-only file system, an existing file is locked; if there is none, no other process could create and lock it
    either, and the directory is only read.

    Raises:
        StoreLocked: another process (or another opening in this process) holds it.
        StoreUnavailable: the lock cannot be examined now.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "LOCK"
        self._home = HomeProcess(f"the lock of {directory}")
        try:
            occupy_standard_descriptors()
            self._fd = _open(self._path)
        except OSError as error:
            raise StoreUnavailable(f"{self._path} cannot be opened now: {error}") from error
        if self._fd < 0:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            private_descriptors.close(self._fd)
            raise StoreLocked(
                f"the store at {directory} is in use by process {owner}; stop it, or talk to its server instead"
            ) from error
        except OSError as error:
            private_descriptors.close(self._fd)
            raise StoreUnavailable(f"{self._path} cannot be locked now: {error}") from error
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            log.info("this process's id could not be written to %s: %s", self._path, error)  # the lock is still held

    def release(self) -> None:
        """Release the lock. Does nothing in a forked child, as the lock belongs to the parent."""
        if self._fd >= 0 and self._home.is_here:
            # A child that was just forked may not have closed its descriptor yet, which would keep the lock.
            with contextlib.suppress(OSError):  # closing releases it in any case, only later
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            private_descriptors.close(self._fd)
        self._fd = -1


def _open(path: Path) -> int:
    """Return a descriptor to lock; -1 if there is no file and none can be created."""
    try:
        return private_descriptors.open(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if fault_of(error) is not Fault.READ_ONLY:
            raise
    try:
        return private_descriptors.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return -1

"""One process owns a store directory: an advisory lock that ends with the process, also if it has forked."""

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

    On a file system that takes no writes the file is locked as it is; where there is none, nobody else could make
    and lock it either, and the directory is only read.

    Raises:
        StoreLocked: another process (or another opening in this one) holds it.
        StoreUnavailable: the machine cannot tell now.
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
            log.info("who holds %s cannot be noted in it: %s", self._path, error)  # it is held all the same

    def release(self) -> None:
        """Let others in. In a forked child this does nothing: the lock is the parent's."""
        if self._fd >= 0 and self._home.is_here:
            # A child that was forked just now may not have closed its descriptor yet, which would keep the lock.
            with contextlib.suppress(OSError):  # closing ends it in any case, only later
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            private_descriptors.close(self._fd)
        self._fd = -1


def _open(path: Path) -> int:
    """A descriptor to lock; -1 if there is no file, and none can be made."""
    try:
        return private_descriptors.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    except OSError as error:
        if fault_of(error) is not Fault.READ_ONLY:
            raise
    try:
        return private_descriptors.open(path, os.O_RDONLY, 0o640)
    except FileNotFoundError:
        return -1

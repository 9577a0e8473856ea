"""Disk space that a database keeps for deletions, so that they are possible when the disk is full.

LMDB never overwrites what it has committed: a deletion first needs new pages, and only then are others free.
"""

from __future__ import annotations

import logging
import os
import resource
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from storage.errors import StoreFull
from storage.system.faults import Fault, fault_of
from storage.system.lmdb_files import SPARE_FILE
from storage.system.private_paths import FILE_MODE

log = logging.getLogger(__name__)

_STEP_BYTES = 16 << 10  # less than this is not worth another attempt
_LEAST_SHARE = 4


class Spare:
    """Space on the disk of a database, occupied by a file that is given up when a deletion needs it.

    The caller holds the database's write lock, except for :meth:`used_by_this_thread`.

    Args:
        directory: of the database.
        size: bytes to keep; 0 keeps none.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self._directory = directory
        self._path = directory / SPARE_FILE
        self._size = size
        self._kept = 0
        self._here = threading.local()

    @contextmanager
    def used_by_this_thread(self) -> Iterator[None]:
        """In the block, writes of this thread may use the space: they free some, or are needed for that."""
        before = self.is_usable
        self._here.is_usable = True
        try:
            yield
        finally:
            self._here.is_usable = before

    @property
    def is_usable(self) -> bool:
        """Whether writes of this thread may use the space."""
        return bool(getattr(self._here, "is_usable", False))

    def keep(self) -> None:
        """Occupy as much of the space as the disk has."""
        if self._kept >= self._size:
            return
        try:
            self._kept = _occupied(self._path, self._size)
        except OSError as error:
            log.warning("no space can be kept for deletions in %s: %s", self._directory, error)
            self._size = 0

    def give_up(self) -> bool:
        """Free the space for a write of this thread. Return False if there is none, or another thread's kind of write.

        Once it is written, :meth:`keep` occupies what is left of the space.
        """
        if not (self._kept and self.is_usable):
            return False
        self._kept = 0
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the space kept for deletions in %s cannot be used: %s", self._directory, error)
            return False
        return True

    def require(self, env: lmdb.Environment, txn: lmdb.Transaction[bytes], databases: Iterable[object]) -> None:
        """Refuse a write that stores more, unless a deletion could still be written after it.

        Args:
            env: the environment.
            txn: the open transaction of the write.
            databases: all its databases.

        Raises:
            StoreFull: the space that is kept has become small, and few pages of the data file are free.
        """
        if not self._size or self.is_usable:
            return
        least = self._size // _LEAST_SHARE
        limit, beyond = resource.getrlimit(resource.RLIMIT_FSIZE)[0], self._kept
        if limit == resource.RLIM_INFINITY and beyond >= least:
            return
        page = env.stat()["psize"]
        pages = env.info()["last_pgno"] + 1
        if limit != resource.RLIM_INFINITY:
            beyond = max(min(beyond, limit - pages * page), 0)
        stats = [txn.stat(database) for database in databases]  # type: ignore[arg-type]
        used = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        if beyond + max(pages - used, 0) * page < least:
            raise StoreFull(
                f"no space left for the database in {self._directory} but for deletions; delete files and run "
                "collect, or add room"
            )


def _occupied(path: Path, size: int) -> int:
    """Make a file about as large as the disk has room for, at most ``size`` bytes; return its size.

    Raises:
        OSError: it cannot be made, for another reason than a full disk.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        if fault_of(error) is Fault.FULL:
            return 0
        raise
    try:
        kept = os.fstat(descriptor).st_size
        step = size - kept
        while kept < size and step >= _STEP_BYTES:
            try:
                os.posix_fallocate(descriptor, 0, kept + step)
            except OSError as error:
                os.ftruncate(descriptor, kept)
                if fault_of(error) is not Fault.FULL:
                    raise
            else:
                kept += step
            step //= 2
        return kept
    finally:
        os.close(descriptor)

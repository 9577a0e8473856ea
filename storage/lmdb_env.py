"""LMDB environments whose map grows by itself, shared by many threads.

LMDB wants its map resized only while no transaction of the process is open; a small gate keeps
readers and the (single) writer out for that moment.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from storage.descriptors import occupy_standard_descriptors
from storage.errors import FormatError, StorageError, StoreClosed, StoreFull
from storage.forks import HomeProcess

_MAP_BYTES_START = 64 << 20
_READERS_MAX = 1024
_SHORT_WRITE_BYTES_MAX = 4 << 20  # LMDB writes up to 64 pages at a time, or one value of a few MiB
_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
ROOT = ""  # name of the tree that the named databases are entries of; holds small keys as well
T = TypeVar("T")

Database = Any  # lmdb._Database has no public name
if TYPE_CHECKING:
    # Without buffers=True, keys and values are bytes.
    Transaction = lmdb.Transaction[bytes]
else:
    Transaction = lmdb.Transaction


class Environment:
    """One LMDB environment with named databases; thread-safe.

    Raises:
        FormatError: the file is not LMDB's, or damaged.
        StoreFull: the disk is full (from writes).
    """

    def __init__(self, path: Path, databases: tuple[str, ...], *, sync: bool = True) -> None:
        self._home = HomeProcess(f"the database in {path}")
        occupy_standard_descriptors()
        path.mkdir(parents=True, exist_ok=True)
        fresh = not (path / "data.mdb").exists()
        try:
            self._env = lmdb.open(
                str(path),
                map_size=_initial_map(path),
                max_dbs=len(databases),
                max_readers=_READERS_MAX,
                readahead=False,
                sync=sync,
                mode=0o640,
            )
            self._env.reader_check()
            self.databases: dict[str, Database] = {
                name: self._env.open_db(None if name == ROOT else name.encode()) for name in databases
            }
        except lmdb.Error as error:
            raise translated(error, path) from error
        if fresh:
            # LMDB makes its pages durable, but not the names of a new database's files.
            _sync_names(path)
            _sync_names(path.parent)
        self._path = path
        self._gate = threading.Lock()
        self._idle = threading.Condition(self._gate)
        self._active = 0
        self._growing = False
        self._closed = False
        self._write_lock = threading.Lock()

    def get(self, database: str, key: bytes) -> bytes | None:
        """One value, from the latest committed state."""
        self._enter()
        try:
            with self._env.begin(self.databases[database]) as txn:
                return txn.get(key)
        except lmdb.Error as error:
            raise translated(error, self._path) from error
        finally:
            self._leave()

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one read transaction (keep it short: it holds up growth) and return its result."""
        self._enter()
        try:
            with self._env.begin() as txn:
                return work(txn)
        except lmdb.Error as error:
            raise translated(error, self._path) from error
        finally:
            self._leave()

    def pages(
        self, database: str, start: bytes, stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        """Walk start <= key < stop in pages, each from its own short transaction, so that writers go on."""
        while True:
            page = self.read(lambda txn, at=start: self._page(txn, database, at, stop, size))  # type: ignore[misc]
            if page:
                yield page
            if len(page) < size:
                return
            start = page[-1][0] + b"\0"

    def _page(
        self, txn: Transaction, database: str, start: bytes, stop: bytes | None, size: int
    ) -> list[tuple[bytes, bytes]]:
        cursor = txn.cursor(self.databases[database])
        found: list[tuple[bytes, bytes]] = []
        if not (cursor.set_range(start) if start else cursor.first()):
            return found
        for key, value in cursor:
            if found and key <= found[-1][0]:
                raise lmdb.CorruptedError("keys out of order")
            if (stop is not None and key >= stop) or len(found) == size:
                break
            found.append((key, value))
        return found

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in a write transaction and commit it durably; run again with a larger map if it was full.

        ``work`` must be repeatable. If it raises, nothing is kept.
        """
        self._home.check()  # before the lock, which may have been held when this process was forked
        with self._write_lock:
            while True:
                try:
                    with self._transaction() as txn:
                        return work(txn)
                except lmdb.MapFullError:
                    self._grow()
                except lmdb.Error as error:
                    raise translated(error, self._path) from error

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        self._enter()
        try:
            with self._env.begin(write=True) as txn:
                yield txn
        finally:
            self._leave()

    def entries(self, database: str) -> int:
        """Number of keys in a database."""
        return self.read(lambda txn: int(txn.stat(self.databases[database])["entries"]))

    def close(self) -> None:
        """Close once running transactions have ended; later use raises StoreClosed. Does nothing in a forked child."""
        if not self._home.is_here:
            return
        with self._gate:
            if self._closed:
                return
            self._closed = True
            while self._active:
                self._idle.wait()
            self._env.close()

    def _enter(self) -> None:
        self._home.check()
        with self._gate:
            while self._growing:
                self._idle.wait()
            if self._closed:
                raise StoreClosed(f"{self._path} is closed")
            self._active += 1

    def _leave(self) -> None:
        with self._gate:
            self._active -= 1
            if (self._growing or self._closed) and not self._active:
                self._idle.notify_all()

    def _grow(self) -> None:
        with self._gate:
            self._growing = True
            while self._active:
                self._idle.wait()
            try:
                self._env.set_mapsize(self._env.info()["map_size"] * 2)
            finally:
                self._growing = False
                self._idle.notify_all()


def _sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _initial_map(path: Path) -> int:
    file = path / "data.mdb"
    used = file.stat().st_size if file.exists() else 0
    size = _MAP_BYTES_START
    while size < 2 * used:
        size *= 2
    return size


def translated(error: lmdb.Error, path: Path) -> StorageError:
    """The engine's error for one of LMDB's."""
    text = str(error)  # what py-lmdb tells of the error number
    full = isinstance(error, lmdb.DiskError) or any(os.strerror(number) in text for number in _FULL)
    if full or (os.strerror(errno.EIO) in text and _is_full(path)):
        return StoreFull(f"no space left for the database in {path}; delete files and run collect, or add room")
    return FormatError(f"the database in {path} cannot be used: {error}")


def _is_full(path: Path) -> bool:
    """Whether a write may have come out short, which LMDB calls an I/O error."""
    status = os.statvfs(path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    room = _SHORT_WRITE_BYTES_MAX
    limited = limit != resource.RLIM_INFINITY and (path / "data.mdb").stat().st_size + room > limit
    return limited or status.f_bavail * status.f_frsize < room

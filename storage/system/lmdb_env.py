"""LMDB environments that grow their maps automatically, shared by many threads.

LMDB's map may be resized only while the process has no open transaction; a gate keeps readers and the (single) writer
out for that moment.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from operator import lt
from pathlib import Path
from typing import TypeVar

import lmdb

from storage.clocks import monotonic_s
from storage.errors import StorageError, StoreClosed, StoreFull, StoreReadOnly, StoreUnavailable
from storage.system.backoff import Backoff
from storage.system.descriptors import occupy_standard_descriptors
from storage.system.directories import sync_directory
from storage.system.forks import HomeProcess
from storage.system.lmdb_errors import translated, unavailable
from storage.system.lmdb_files import drop_cache, initial_map, prepare_directory
from storage.system.lmdb_origin import DATA_FILE, ORIGIN_KEY, Origin, Past, origin_of, past_of, write_closing_note
from storage.system.lmdb_spare import Spare
from storage.system.lmdb_types import Cursor, Database, GaveUp, Transaction
from storage.system.private_paths import FILE_MODE

log = logging.getLogger(__name__)

_READERS_MAX = 1024
_PROBE = b"probe"  # a key that is written to test whether writing works again
ROOT = ""  # name of the tree that has the named databases as entries, and also small keys
T = TypeVar("T")


class Environment:
    """One LMDB environment with named databases; thread-safe.

    On a read-only file system, it is opened for reading; databases that do not exist then read as empty. After an error
    that LMDB does not recover from, the next use reopens it, with pauses between attempts.

    Raises:
        FormatError: the file is not LMDB's, or damaged.
        StoreUnavailable: it cannot be opened now, as descriptors, memory or the directory are unavailable.
        StoreReadOnly: it does not exist and cannot be created (also from writes).
        StoreFull: the disk is full (from writes).
    """

    def __init__(
        self,
        path: Path,
        databases: tuple[str, ...],
        *,
        sync: bool = True,
        note_doubt: Callable[[Transaction], object] | None = None,
        spare_bytes: int = 0,
        clock_s: Callable[[], float] = monotonic_s,
    ) -> None:
        self._home = HomeProcess(f"the database in {path}")
        occupy_standard_descriptors()
        self._path = path
        self._names = databases
        self._sync = sync
        self._note_doubt = note_doubt
        self._spare = Spare(path, spare_bytes)
        self._origin: Origin | None = None  # of the open file; None: there is no note
        self._note_due = False  # write it with the next transaction
        self._doubtful = False
        self.databases: dict[str, Database] = {}
        self._gate = threading.Lock()
        self._idle = threading.Condition(self._gate)
        self._active = 0
        self._growing = False
        self._closed = False
        self._write_lock = threading.Lock()
        self._env: lmdb.Environment | None = None
        self._trouble = ""
        self._retry = Backoff(clock_s=clock_s)
        self.read_only = False
        self._open(initial_map(path))

    @property
    def trouble(self) -> str:
        """Why it cannot be written or used now; empty if it can."""
        return self._trouble

    @property
    def doubtful(self) -> bool:
        """Whether it is a copy that may lack entries, which could not be recorded yet."""
        return self._doubtful

    def probe(self) -> str:
        """Like :attr:`trouble`, after retrying what failed, if that is due."""
        if self._trouble:
            try:
                if ROOT in self._names:
                    self.write(lambda txn: txn.put(_PROBE, b"", db=self.databases[ROOT]))
                else:
                    with self._write_lock:
                        self._make_writable()
                    self.read(lambda txn: None)
                    self._trouble = ""
            except StorageError as error:
                return str(error)
        return self._trouble

    def _open(self, map_bytes: int) -> None:
        """Open the environment, only for reading if its file system is read-only."""
        try:
            self._open_writable(map_bytes)
        except StoreReadOnly as error:
            self._open_read_only(map_bytes)
            self.read_only, self._trouble = True, str(error)
        else:
            self.read_only, self._trouble = False, ""

    def _open_writable(self, map_bytes: int) -> None:
        try:
            prepare_directory(self._path)
            fresh = not (self._path / DATA_FILE).exists()
        except OSError as error:
            raise unavailable(error, self._path) from error
        self._open_as(map_bytes, readonly=False)
        if fresh:
            # LMDB syncs its pages, but not the directory entries of new files.
            try:
                sync_directory(self._path)
                sync_directory(self._path.parent)
            except OSError as error:
                self._let_go()
                raise unavailable(error, self._path) from error

    def _open_read_only(self, map_bytes: int) -> None:
        if not (self._path / DATA_FILE).exists():
            raise StoreReadOnly(f"there is no database in {self._path}, and none can be created: its disk is read-only")
        self._open_as(map_bytes, readonly=True)

    def _open_as(self, map_bytes: int, *, readonly: bool) -> None:
        past = self._look()
        try:
            self._env = lmdb.open(
                str(self._path),
                map_size=map_bytes,
                max_dbs=len(self._names),
                max_readers=_READERS_MAX,
                readahead=False,
                sync=self._sync,
                mode=FILE_MODE,
                readonly=readonly,
                lock=not readonly,  # a read-only environment has no writer
            )
            if not readonly:
                self._env.reader_check()
            for name in self._names:
                try:
                    self.databases[name] = self._env.open_db(
                        None if name == ROOT else name.encode(), create=not readonly
                    )
                except lmdb.NotFoundError:
                    self.databases.pop(name, None)  # created by an older release, which had no such database
        except lmdb.Error as error:
            self._let_go()
            raise translated(error, self._path) from error
        self._take_note(past, readonly=readonly)

    def _look(self) -> Past:
        try:
            return past_of(self._path) if self._sync else Past.NONE
        except OSError as error:
            raise unavailable(error, self._path) from error

    def _take_note(self, past: Past, *, readonly: bool) -> None:
        """Note the data file's identity: for a copy at once, to check it only once, otherwise with a later write."""
        try:
            self._origin = origin_of(self._path) if self._sync else None
        except OSError as error:
            self._let_go()
            raise unavailable(error, self._path) from error
        self._doubtful = past is Past.COPIED_IN_USE and self._note_doubt is not None
        self._note_due = self._sync and (past is not Past.SAME or self._note_doubt is not None)
        if readonly or past in (Past.NONE, Past.SAME):
            return
        log.info("the database in %s: %s", self._path, past.value)
        assert self._env is not None
        try:
            with self._env.begin(write=True) as txn:
                self._write_note(txn)
        except lmdb.Error as error:
            log.warning("the database in %s could not be marked as written here: %s", self._path, error)
        else:
            self._note_due = self._doubtful = False

    def _write_note(self, txn: Transaction) -> None:
        assert self._origin is not None
        txn.put(ORIGIN_KEY, self._origin.encoded())
        if self._doubtful and self._note_doubt is not None:
            self._note_doubt(txn)

    def _note_closed(self) -> None:
        """Note that it is closed cleanly, if it was noted to be in use."""
        origin = self._origin
        if self._note_doubt is None or origin is None or self._note_due or self._closed or self.read_only:
            return

        try:
            self.write(lambda txn: write_closing_note(txn, origin))
        except StorageError as error:
            log.warning(
                "the database in %s could not be marked as closed, so copies of it count as incomplete: %s",
                self._path,
                error,
            )

    def _let_go(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def get(self, database: str, key: bytes) -> bytes | None:
        """Return a value from the latest committed state, or None."""
        return self.read(lambda txn: txn.get(key, db=self.databases[database]) if database in self.databases else None)

    def has_any(self, database: str, prefix: bytes) -> bool:
        """Return whether any key begins with a prefix, in the latest committed state."""

        def found(txn: Transaction) -> bool:
            if database not in self.databases:
                return False
            cursor = txn.cursor(self.databases[database])
            return cursor.set_range(prefix) and cursor.key().startswith(prefix)

        return self.read(found)

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one read transaction and return its result. Must be short: the map cannot grow meanwhile."""
        try:
            return self._read(work)
        except GaveUp as error:
            self._open_anew(error.env)
        except lmdb.Error as error:
            raise translated(error, self._path) from error
        try:
            return self._read(work)
        except lmdb.Error as error:
            raise translated(error, self._path) from error

    def _read(self, work: Callable[[Transaction], T]) -> T:
        env = self._enter()
        try:
            with env.begin() as txn:
                return work(txn)
        except lmdb.PanicError as error:
            raise GaveUp(env) from error
        finally:
            self._leave()

    def pages(
        self, database: str, start: bytes, stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield entries with start <= key < stop in pages, each read in a short transaction to let writers go on."""

        def page(cursor: Cursor) -> list[tuple[bytes, bytes]]:
            found: list[tuple[bytes, bytes]] = []
            for key, value in cursor:
                if found and key <= found[-1][0]:
                    raise lmdb.CorruptedError("keys out of order")
                if (stop is not None and key >= stop) or len(found) == size:
                    break
                found.append((key, value))
            return found

        return self._walk(database, start, size, page, lambda last: last[0])

    def key_pages(
        self, database: str, start: bytes, stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[bytes]]:
        """Like :meth:`pages`, with keys only."""

        def page(cursor: Cursor) -> list[bytes]:
            found = list(islice(cursor.iternext(values=False), size))
            if not all(map(lt, found, islice(found, 1, None))):
                raise lmdb.CorruptedError("keys out of order")
            return found if stop is None else found[: bisect_left(found, stop)]

        return self._walk(database, start, size, page, lambda last: last)

    def _walk(
        self, database: str, start: bytes, size: int, page: Callable[[Cursor], list[T]], key_of: Callable[[T], bytes]
    ) -> Iterator[list[T]]:
        """Yield pages of at most ``size`` entries, each read by a cursor at the first key after the previous page."""

        def read(txn: Transaction) -> list[T]:
            if database not in self.databases:
                return []
            cursor = txn.cursor(self.databases[database])
            return page(cursor) if (cursor.set_range(start) if start else cursor.first()) else []

        while True:
            found = self.read(read)
            if found:
                yield found
            if len(found) < size:
                return
            start = key_of(found[-1]) + b"\0"

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in a write transaction and commit it durably; rerun it with a larger map if the map was full.

        ``work`` must be repeatable. If it raises, nothing is written.
        """
        self._home.check()  # before taking the lock, which may have been held when this process was forked
        with self._write_lock:
            self._make_writable()
            self._spare.keep()
            panics = 0
            while True:
                try:
                    with self._transaction() as txn:
                        if self._note_due:
                            self._write_note(txn)
                        outcome = work(txn)
                    self._trouble = ""
                    self._note_due = self._doubtful = False
                    self._spare.keep()  # what is left of it, if it was given up
                    return outcome
                except lmdb.MapFullError:
                    self._grow()
                except GaveUp as error:
                    panics += 1
                    if panics > 1:
                        raise self._noted(error) from error
                    self._open_anew(error.env)
                except lmdb.Error as error:
                    failure = self._noted(error)
                    if not (isinstance(failure, StoreFull) and self._spare.give_up()):
                        raise failure from error

    def freeing(self) -> AbstractContextManager[None]:
        """In the block, writes of this thread may use the disk space that is kept for deletions (``spare_bytes``)."""
        return self._spare.used_by_this_thread()

    def require_spare(self, txn: Transaction) -> None:
        """Raise StoreFull if, after the open transaction, a deletion might find no space; not in :meth:`freeing`."""
        assert self._env is not None
        self._spare.require(self._env, txn, self.databases.values())

    def _noted(self, error: lmdb.Error) -> StorageError:
        failure = translated(error, self._path)
        self._trouble = str(failure) if isinstance(failure, StoreUnavailable) else ""
        return failure

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        env = self._enter()
        try:
            with env.begin(write=True) as txn:
                yield txn
        except lmdb.PanicError as error:
            raise GaveUp(env) from error
        finally:
            self._leave()

    def entries(self, database: str) -> int:
        """Return the number of keys in a database."""
        return self.read(
            lambda txn: int(txn.stat(self.databases[database])["entries"]) if database in self.databases else 0
        )

    def close(self) -> None:
        """Close once running transactions have ended; later use raises StoreClosed. Does nothing in a forked child."""
        if not self._home.is_here:
            return
        self._note_closed()
        with self._gate:
            if self._closed:
                return
            self._closed = True
            while self._active:
                self._idle.wait()
            self._let_go()

    def _enter(self) -> lmdb.Environment:
        """Register this thread, and return the environment, which it may use until :meth:`_leave`."""
        self._home.check()
        with self._gate:
            while self._growing:
                self._idle.wait()
            if self._closed:
                raise StoreClosed(f"{self._path} is closed")
            env = self._env or self._reopened()
            self._active += 1
            return env

    def _leave(self) -> None:
        with self._gate:
            self._active -= 1
            if (self._growing or self._closed) and not self._active:
                self._idle.notify_all()

    @contextmanager
    def _alone(self, failed: lmdb.Environment | None = None) -> Iterator[bool]:
        """Keep all other threads out of the environment for a moment; this thread must have no transaction.

        Args:
            failed: do so only if this environment is still in use. Threads may already use its replacement, and wait
                for each other: a writer that reads while it writes must not be blocked half-way.

        Yields:
            True if no other thread uses it; False if ``failed`` has been replaced.
        """
        with self._gate:
            while self._growing:
                self._idle.wait()
            if failed is not None and self._env is not failed:
                yield False
                return
            self._growing = True
            while self._active:
                self._idle.wait()
            try:
                if self._closed:
                    raise StoreClosed(f"{self._path} is closed")
                yield True
            finally:
                self._growing = False
                self._idle.notify_all()

    def _grow(self) -> None:
        with self._alone():
            if self._env is None:
                return  # the next thread that enters reopens it
            size = self._env.info()["map_size"]
            try:
                self._env.reader_check()  # a killed snapshot process would keep pages from being reused
                self._env.set_mapsize(2 * size)
            except lmdb.Error as error:
                # LMDB has released the old map by then, and cannot be used without a map.
                self._let_go()
                self._reopened(size)
                raise translated(error, self._path) from error

    def _open_anew(self, failed: lmdb.Environment) -> None:
        """Reopen after an error that LMDB does not recover from, as data in memory must not be taken for durable.

        Does nothing if another thread has already done so.
        """
        with self._alone(failed) as alone:
            if not alone:
                return
            if self._env is not None:
                self._let_go()
                drop_cache(self._path / DATA_FILE)
            log.warning("reopening the database in %s after a disk error", self._path)
            self._reopened()

    def _reopened(self, map_bytes: int = 0) -> lmdb.Environment:
        """Reopen a closed environment, unless that failed a moment ago; the caller holds the gate.

        Raises:
            StoreUnavailable: it still cannot be opened.
        """
        if not self._retry.due():
            raise StoreUnavailable(self._trouble)
        try:
            self._open(map_bytes or initial_map(self._path))
        except (StorageError, OSError) as error:
            self._trouble = f"the database in {self._path} cannot be opened: {error}"
            self._retry.failed()
            raise StoreUnavailable(self._trouble) from error
        self._retry.succeeded()
        assert self._env is not None
        return self._env

    def _make_writable(self) -> None:
        """Reopen a read-only environment for writing, unless that failed a moment ago.

        Raises:
            StoreReadOnly: it still cannot be written.
        """
        if not self.read_only:
            return
        with self._alone():
            if self._retry.due():
                self._let_go()
                self._reopened()
                if self.read_only:
                    self._retry.failed()
            if self.read_only:
                raise StoreReadOnly(self._trouble)

"""A catalog in a process's memory, for simulations, tests, and stores that must leave nothing behind.

Its transactions are optimistic, like those of etcd, and do not wait for each other. Each runs on the last committed
state. Its changes are committed if nothing that it has read has changed meanwhile; otherwise it is run again.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from storage.catalog.table_catalog import TableCatalog
from storage.catalog.tables import TABLES, TableReader, TableTransaction
from storage.errors import StoreClosed

T = TypeVar("T")

_Place = tuple[str, bytes]  # table and key


class MemoryDatabase:
    """The committed data. Like a file, it outlives the catalogs that are opened over it. Copies are independent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.revision = 0
        self._tables: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLES}
        self._sorted: dict[str, list[bytes]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryDatabase:
        copied = MemoryDatabase()
        with self.lock:
            copied._tables = {name: dict(table) for name, table in self._tables.items()}
        return copied

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return a value. The caller holds the lock, as for all other methods."""
        return self._tables[table].get(key)

    def page(self, table: str, start: bytes, stop: bytes | None, size: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``size`` keys and values from ``start`` to before ``stop``."""
        rows = self._tables[table]
        keys = self._sorted.get(table)
        if keys is None:
            keys = self._sorted[table] = sorted(rows)
        first = bisect_left(keys, start)
        last = min(first + size, len(keys) if stop is None else bisect_left(keys, stop))
        return [(key, rows[key]) for key in keys[first:last]]

    def entries(self, table: str) -> int:
        """Return the number of keys in a table."""
        return len(self._tables[table])

    def change(self, changes: dict[_Place, bytes | None]) -> None:
        """Set values; None removes a key."""
        self.revision += 1
        for (table, key), value in changes.items():
            rows = self._tables[table]
            if (value is None) == (key in rows):
                self._sorted.pop(table, None)
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value


class MemoryCatalog(TableCatalog):
    """A :class:`~storage.catalog.port.Catalog` over a database in memory.

    Args:
        database: the data, which stays when the catalog is closed; None: a new database.
    """

    def __init__(self, database: MemoryDatabase | None = None) -> None:
        super().__init__(MemoryTables(database or MemoryDatabase()))


class MemoryTables:
    """:class:`~storage.catalog.tables.Tables` in memory."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._closed = False

    @property
    def doubtful(self) -> bool:
        return False

    def trouble(self) -> str:
        return ""

    def get(self, table: str, key: bytes) -> bytes | None:
        with self._opened().lock:
            return self._database.get(table, key)

    def get_each(self, table: str, keys: Iterable[bytes]) -> list[bytes | None]:
        with self._opened().lock:
            return [self._database.get(table, key) for key in keys]

    def has_any(self, table: str, prefix: bytes) -> bool:
        with self._opened().lock:
            return any(key.startswith(prefix) for key, _ in self._database.page(table, prefix, None, 1))

    def view(self, work: Callable[[TableReader], T]) -> T:
        with self._opened().lock:
            return work(self._database)

    def pages(
        self, table: str, start: bytes = b"", stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        while True:
            with self._opened().lock:
                page = self._database.page(table, start, stop, size)
            if page:
                yield page
            if len(page) < size:
                return
            start = page[-1][0] + b"\0"

    def entries(self, table: str) -> int:
        with self._opened().lock:
            return self._database.entries(table)

    def transact(self, work: Callable[[TableTransaction], T]) -> T:
        while True:
            transaction = _Transaction(self._opened())
            try:
                outcome = work(transaction)
            except _OvertakenError:
                continue
            if transaction.commit():
                return outcome

    def freeing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self._closed = True

    def _opened(self) -> MemoryDatabase:
        if self._closed:
            raise StoreClosed("the catalog is closed")
        return self._database


class _OvertakenError(Exception):
    """Data read by a transaction was changed before the transaction had read everything."""


class _Transaction:
    """A :class:`TableTransaction` that keeps its reads and changes until it commits.

    Its reads are consistent: after another commit, each read first checks that the data read before has not changed.
    """

    __slots__ = ("_changes", "_database", "_read", "_revision")

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._revision = database.revision
        self._read: dict[_Place, bytes | None] = {}
        self._changes: dict[_Place, bytes | None] = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        place = table, key
        if place in self._changes:
            return self._changes[place]
        if place not in self._read:
            with self._database.lock:
                if not self._is_current():
                    raise _OvertakenError
                self._read[place] = self._database.get(table, key)
        return self._read[place]

    def put(self, table: str, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        if not overwrite and self.get(table, key) is not None:
            return False
        self._changes[table, key] = value
        return True

    def delete(self, table: str, key: bytes) -> bool:
        was_there = self.get(table, key) is not None
        if was_there:
            self._changes[table, key] = None
        return was_there

    def commit(self) -> bool:
        """Commit the changes unless data that was read has changed; return whether they were committed."""
        with self._database.lock:
            if not self._is_current():
                return False
            if self._changes:
                self._database.change(self._changes)
            return True

    def _is_current(self) -> bool:
        """Whether the data read has not changed. The caller holds the lock."""
        if self._revision != self._database.revision:
            if any(self._database.get(*place) != value for place, value in self._read.items()):
                return False
            self._revision = self._database.revision
        return True

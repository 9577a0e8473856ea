"""The catalog on a database in memory, which outlives the pool's process."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from storage.catalog import LmdbCatalog

T = TypeVar("T")
Table = dict[bytes, bytes]

_TABLES = ("", "files", "names", "nodes", "holdings", "tombstones", "unburied", "uploads")


class Database:
    """Committed tables, by name."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {name: {} for name in _TABLES}
        self._sorted: dict[str, list[bytes]] = {}

    def keys(self, name: str) -> list[bytes]:
        """Keys of a table, in order."""
        found = self._sorted.get(name)
        if found is None:
            found = self._sorted[name] = sorted(self.tables[name])
        return found

    def commit(self, changes: dict[str, dict[bytes, bytes | None]]) -> None:
        """Make changes, None for keys to delete."""
        for name, changed in changes.items():
            table = self.tables[name]
            for key, value in changed.items():
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value
            self._sorted.pop(name, None)


class _Cursor:
    def __init__(self, database: Database, name: str) -> None:
        self._table = database.tables[name]
        self._keys = database.keys(name)
        self._at = 0

    def set_range(self, start: bytes) -> bool:
        self._at = bisect_left(self._keys, start)
        return self._at < len(self._keys)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return ((key, self._table[key]) for key in self._keys[self._at :])


class _Transaction:
    """The part of ``lmdb.Transaction`` that the catalog uses; changes are kept apart until the commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changes: dict[str, dict[bytes, bytes | None]] = {}

    def get(self, key: bytes, db: str) -> bytes | None:
        changed = self.changes.get(db)
        if changed is not None and key in changed:
            return changed[key]
        return self._database.tables[db].get(key)

    def put(self, key: bytes, value: bytes, db: str, overwrite: bool = True) -> bool:
        if not overwrite and self.get(key, db) is not None:
            return False
        self.changes.setdefault(db, {})[key] = value
        return True

    def delete(self, key: bytes, db: str) -> bool:
        there = self.get(key, db) is not None
        if there:
            self.changes.setdefault(db, {})[key] = None
        return there

    def cursor(self, db: str) -> _Cursor:
        return _Cursor(self._database, db)


class MemoryEnvironment:
    """Stands in for :class:`storage.system.lmdb_env.Environment`.

    Args:
        database: what is committed.
        reach: called before each access and after each commit; raises once the process is no more.
    """

    def __init__(self, database: Database, reach: Callable[[str], None]) -> None:
        self._database = database
        self._reach = reach
        self.writing = False  # whether a transaction is open for which others would wait
        self.databases: dict[str, Any] = {name: name for name in _TABLES}
        self.doubtful = False

    def probe(self) -> str:
        self._reach("")
        return ""

    def get(self, database: str, key: bytes) -> bytes | None:
        self._reach("")
        return self._database.tables[database].get(key)

    def read(self, work: Callable[[Any], T]) -> T:
        self._reach("")
        return work(_Transaction(self._database))

    def write(self, work: Callable[[Any], T]) -> T:
        transaction = _Transaction(self._database)
        self.writing = True
        try:
            outcome = work(transaction)
        finally:
            self.writing = False
        self._reach("catalog: before a commit")
        self._database.commit(transaction.changes)
        self._reach("catalog: after a commit")
        return outcome

    def pages(
        self, database: str, start: bytes, stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        self._reach("")
        keys, table = self._database.keys(database), self._database.tables[database]
        first = bisect_left(keys, start)
        last = len(keys) if stop is None else bisect_left(keys, stop)
        page = [(key, table[key]) for key in keys[first:last]]
        if page:
            yield page

    def entries(self, database: str) -> int:
        return len(self._database.tables[database])

    def close(self) -> None:
        pass


class MemoryCatalog(LmdbCatalog):
    """The real catalog's tables and records over :class:`MemoryEnvironment`."""

    def __init__(self, environment: MemoryEnvironment) -> None:
        self._environment = environment  # type: ignore[assignment]

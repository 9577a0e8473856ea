"""A catalog in memory for simulated processes. What is committed outlives the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

from storage.catalog import MemoryDatabase as Database
from storage.catalog.memory import MemoryTables
from storage.catalog.tables import TableReader, TableTransaction

T = TypeVar("T")

__all__ = ["Database", "ReachedTables"]


class _AbandonedError(Exception):
    """Aborts a transaction that must have no effect."""


class ReachedTables:
    """The tables of a catalog in memory, for a process that may end at any moment.

    Every function passed to :meth:`transact` is run twice, and the first run is rolled back. This must do no harm.

    Args:
        database: the committed data.
        reach: called before each access and after each commit; raises once the process has ended.
    """

    def __init__(self, database: Database, reach: Callable[[str], None]) -> None:
        self._tables = MemoryTables(database)
        self._reach = reach
        self.writing = False  # whether a transaction is open

    @property
    def doubtful(self) -> bool:
        return False

    def trouble(self) -> str:
        self._reach("")
        return self._tables.trouble()

    def get(self, table: str, key: bytes) -> bytes | None:
        self._reach("")
        return self._tables.get(table, key)

    def get_each(self, table: str, keys: Iterable[bytes]) -> list[bytes | None]:
        self._reach("")
        return self._tables.get_each(table, keys)

    def has_any(self, table: str, prefix: bytes) -> bool:
        self._reach("")
        return self._tables.has_any(table, prefix)

    def view(self, work: Callable[[TableReader], T]) -> T:
        self._reach("")
        return self._tables.view(work)

    def pages(
        self, table: str, start: bytes = b"", stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        self._reach("")
        yield from self._tables.pages(table, start, stop, size=size)

    def entries(self, table: str) -> int:
        return self._tables.entries(table)

    def transact(self, work: Callable[[TableTransaction], T]) -> T:
        def abandoned(txn: TableTransaction) -> None:
            work(txn)
            raise _AbandonedError

        def reached(txn: TableTransaction) -> T:
            outcome = work(txn)
            self._reach("catalog: before a commit")
            return outcome

        self.writing = True
        try:
            with suppress(_AbandonedError):
                self._tables.transact(abandoned)
            outcome = self._tables.transact(reached)
        finally:
            self.writing = False
        self._reach("catalog: after a commit")
        return outcome

    def freeing(self) -> AbstractContextManager[None]:
        return self._tables.freeing()

    def close(self) -> None:
        """Do nothing: the next process can still use the database."""

"""The catalog in LMDB, for a single machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from storage.catalog.port import COPIED_IN_USE
from storage.catalog.records import document_key
from storage.catalog.sealing_tables import LEFTOVERS
from storage.catalog.table_catalog import TableCatalog
from storage.catalog.tables import ROOT, TABLES, TableReader, TableTransaction
from storage.clocks import monotonic_s
from storage.system.lmdb_copy import replaced_by_copy
from storage.system.lmdb_env import Environment
from storage.system.lmdb_types import Database, Transaction

T = TypeVar("T")

_SPARE_BYTES = 1 << 20  # a deletion writes a path of each table's tree, some 30 pages, before the next may reuse them
_OF_PUSHES = frozenset({"files", "holdings"})
"""Tables to which pushes add rows."""


class LmdbCatalog(TableCatalog):
    """A :class:`~storage.catalog.port.Catalog` in one LMDB environment.

    Args:
        path: directory of the environment.
        clock_s: monotonic seconds.
        plain_documents: see :class:`TableCatalog`.
        spare_bytes: disk space to keep for deletions and collects; 0 for a catalog that is not used where it is.

    Raises:
        FormatError: the database is damaged (run rebuild) or of a newer format.
    """

    def __init__(
        self,
        path: Path,
        clock_s: Callable[[], float] = monotonic_s,
        plain_documents: Collection[str] = (),
        spare_bytes: int = _SPARE_BYTES,
    ) -> None:
        super().__init__(LmdbTables(path, clock_s, spare_bytes), plain_documents)


class LmdbTables:
    """:class:`~storage.catalog.tables.Tables` in an LMDB environment, which runs write transactions one at a time.

    If the rows were sealed when there were plain ones, the file is first replaced by a copy of what it has: pages that
    are not used any more still have the former rows.
    """

    def __init__(self, path: Path, clock_s: Callable[[], float] = monotonic_s, spare_bytes: int = _SPARE_BYTES) -> None:
        def opened() -> Environment:
            return Environment(path, TABLES, note_doubt=_note_doubt, spare_bytes=spare_bytes, clock_s=clock_s)

        self._environment = opened()
        if self._environment.get(ROOT, LEFTOVERS) is None or self._environment.read_only:
            return
        self._environment.close()
        is_copied = replaced_by_copy(path)
        self._environment = opened()
        if is_copied:
            self.transact(lambda txn: txn.delete(ROOT, LEFTOVERS))

    @property
    def doubtful(self) -> bool:
        return self._environment.doubtful

    def trouble(self) -> str:
        return self._environment.probe()

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._environment.get(table, key)

    def get_each(self, table: str, keys: Iterable[bytes]) -> list[bytes | None]:
        database = self._environment.databases[table]
        return self._environment.read(lambda txn: [txn.get(key, db=database) for key in keys])

    def has_any(self, table: str, prefix: bytes) -> bool:
        return self._environment.has_any(table, prefix)

    def view(self, work: Callable[[TableReader], T]) -> T:
        databases = self._environment.databases
        return self._environment.read(lambda txn: work(_Transaction(txn, databases)))

    def pages(
        self, table: str, start: bytes = b"", stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        return self._environment.pages(table, start, stop, size=size)

    def entries(self, table: str) -> int:
        return self._environment.entries(table)

    def transact(self, work: Callable[[TableTransaction], T]) -> T:
        databases = self._environment.databases

        def checked(txn: Transaction) -> T:
            transaction = _Transaction(txn, databases)
            outcome = work(transaction)
            if transaction.is_push:
                self._environment.require_spare(txn)
            return outcome

        return self._environment.write(checked)

    def freeing(self) -> AbstractContextManager[None]:
        return self._environment.freeing()

    def close(self) -> None:
        self._environment.close()


class _Transaction:
    """A :class:`TableTransaction` over a transaction of LMDB."""

    __slots__ = ("_databases", "_txn", "is_push")

    def __init__(self, txn: Transaction, databases: dict[str, Database]) -> None:
        self._txn = txn
        self._databases = databases
        self.is_push = False

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._txn.get(key, db=self._databases[table])

    def put(self, table: str, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        self.is_push = self.is_push or table in _OF_PUSHES
        return self._txn.put(key, value, db=self._databases[table], overwrite=overwrite)

    def delete(self, table: str, key: bytes) -> bool:
        return self._txn.delete(key, db=self._databases[table])


def _note_doubt(txn: Transaction) -> None:
    txn.put(document_key(COPIED_IN_USE), b"1")

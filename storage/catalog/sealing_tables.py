"""Tables of which whoever has the database's file, but not the key, can read nothing that users wrote.

A new database is plain. Once it is sealed, it has these rows:

- Settings, totals, profiles and times are as before, and so are documents that are needed before the key is known, such
  as the users' keys, which are sealed themselves.
- All other documents, what users' files take, entries of files, versions and uploads have sealed values. A value is
  encrypted for its table and key, so that it cannot be put elsewhere.
- Names are in the sealed pages of :mod:`storage.catalog.sealed_names`.
- Claims, nodes and tombstones have ids, hashes and numbers only, and stay as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

from cachetools import LRUCache

from storage.catalog.port import COPIED_IN_USE, DESTROYED_KEYS, USER_KEYS
from storage.catalog.records import USAGE_RANGE, document_key
from storage.catalog.sealed_names import Get, NamesReader, NamesWriter, Open, PageCache
from storage.catalog.tables import ROOT, TableReader, Tables, TableTransaction
from storage.errors import InvalidArgument, KeyRequired, SealBroken
from storage.sealing.aead import TAG_BYTES, decrypt, derived, encrypt, message_key

T = TypeVar("T")

LEFTOVERS = b"plain-leftovers"
"""Row of a database that was sealed after it had plain rows, whose bytes may be in its file still."""

_SEALED_WITH = b"sealed-with"
_KEY_ID_BYTES = 16
_SALT_BYTES = 16
_PURPOSE = "TaskWorker 2026-11 catalog: rows"
_BOUND = b"TaskWorker catalog "
_PLAIN_DOCUMENTS = frozenset({USER_KEYS, DESTROYED_KEYS, COPIED_IN_USE})
_DOCUMENTS = document_key("")
_SEALED_TABLES = ("files", "uploads")
_NAMES = "names"
_KEPT_ROWS = 1024
_KEPT_ROW_BYTES_MAX = 2048  # most are far smaller; all that are kept take 4 MiB at most


class _Rows:
    """Seals the values of rows. Thread-safe.

    Rows that were sealed or opened last are kept with what they say, since a push reads what the one before it wrote,
    and a get what the one before it read. What is kept only counts for a row with the same sealed bytes.

    Args:
        secret: 32 random bytes.
        token_bytes: source of random bytes.
    """

    def __init__(self, secret: bytes, token_bytes: Callable[[int], bytes]) -> None:
        self._key = derived(secret, _PURPOSE)
        self._token_bytes = token_bytes
        self._kept: LRUCache[tuple[str, bytes], tuple[bytes, bytes]] = LRUCache(_KEPT_ROWS)
        self._lock = threading.Lock()

    def sealed(self, table: str, key: bytes, value: bytes) -> bytes:
        """Seal a value."""
        salt = self._token_bytes(_SALT_BYTES)
        raw = salt + encrypt(message_key(self._key, salt), value, _bound(table, key))
        self._keep(table, key, raw, value)
        return raw

    def opened(self, table: str, key: bytes, raw: bytes) -> bytes:
        """Open a value.

        Raises:
            SealBroken: it was changed, or is another row's.
        """
        with self._lock:
            kept = self._kept.get((table, key))
        if kept is not None and kept[0] == raw:
            return kept[1]
        value = self.decrypted(table, key, raw)
        self._keep(table, key, raw, value)
        return value

    def decrypted(self, table: str, key: bytes, raw: bytes) -> bytes:
        """Like :meth:`opened`, of a row among many, which is not kept."""
        if len(raw) < _SALT_BYTES + TAG_BYTES:
            raise SealBroken("a row of the catalog was changed; move the catalog away and rebuild")
        try:
            return decrypt(message_key(self._key, raw[:_SALT_BYTES]), raw[_SALT_BYTES:], _bound(table, key))
        except SealBroken:
            raise SealBroken("a row of the catalog was changed; move the catalog away and rebuild") from None

    def _keep(self, table: str, key: bytes, raw: bytes, value: bytes) -> None:
        if table != _NAMES and len(raw) <= _KEPT_ROW_BYTES_MAX:  # pages of names have a cache of their own
            with self._lock:
                self._kept[table, key] = raw, value


def _bound(table: str, key: bytes) -> bytes:
    return _BOUND + table.encode() + b" " + key


class SealingTables:
    """:class:`~storage.catalog.tables.Tables` over others that may be sealed. Until then, it only passes on.

    Args:
        tables: the tables of a database.
        plain_documents: names of documents that are needed before the key is known, and have nothing of users.
    """

    def __init__(self, tables: Tables, plain_documents: Collection[str] = ()) -> None:
        self._tables = tables
        self._plain = frozenset(map(document_key, (*_PLAIN_DOCUMENTS, *plain_documents)))
        self._sealed_with: bytes | None = None
        self._open: _Rows | None = None
        self._sealing: _Rows | None = None  # what a call of seal uses until it has returned
        self._cache = PageCache()

    # -- sealing ---------------------------------------------------------------------------------

    @property
    def sealed_with(self) -> bytes:
        """The id of the key that seals the rows; empty if they are plain."""
        if self._sealed_with is None:
            self._sealed_with = self._tables.get(ROOT, _SEALED_WITH) or b""
        return self._sealed_with

    def unlock(self, secret: bytes, token_bytes: Callable[[int], bytes]) -> None:
        """Use the key that seals the rows.

        Args:
            secret: 32 random bytes.
            token_bytes: source of random bytes.
        """
        self._open = _Rows(secret, token_bytes)

    def seal(self, key_id: bytes, secret: bytes, token_bytes: Callable[[int], bytes]) -> None:
        """Seal all rows, in one transaction, and those that are written from now on.

        Others may write meanwhile. Whoever reads may find a row that is sealed already, or still, for a moment.

        Args:
            key_id: names the key, 16 bytes.
            secret: the key, 32 random bytes.
            token_bytes: source of random bytes.
        """
        if self.sealed_with or len(key_id) != _KEY_ID_BYTES:
            raise InvalidArgument("the catalog is sealed already" if self.sealed_with else "a key's id has 16 bytes")
        rows = self._sealing = _Rows(secret, token_bytes)

        def work(txn: TableTransaction) -> None:
            found = 0
            for table in (ROOT, *_SEALED_TABLES):
                for page in self._tables.pages(table, size=64):  # small, as some values are large
                    for key, value in page:
                        if not self._is_plain(table, key):
                            txn.put(table, key, rows.sealed(table, key, value))
                            found += 1
            names = NamesWriter.new(*_access(rows, txn), self._cache)
            for page in self._tables.pages(_NAMES):
                for key, value in page:
                    txn.delete(_NAMES, key)
                    names.put(key, value)
                    found += 1
                _flush(names, rows, txn)
            _flush(names, rows, txn)
            txn.put(ROOT, _SEALED_WITH, key_id)
            if found:
                txn.put(ROOT, LEFTOVERS, b"1")

        self._tables.transact(work)
        self._sealed_with, self._open = key_id, rows

    def _rows(self) -> _Rows | None:
        """Seals and opens rows; None if they are plain.

        Raises:
            KeyRequired: they are sealed, and there is no key.
        """
        return (self._open or _locked()) if self.sealed_with else None

    def _is_plain(self, table: str, key: bytes) -> bool:
        """Whether a row can be read without the key, even if others are sealed."""
        if table in _SEALED_TABLES or table == _NAMES:
            return False
        return table != ROOT or key in self._plain or not key.startswith((_DOCUMENTS, USAGE_RANGE[0]))

    def _is_wholly_plain(self, table: str) -> bool:
        """Whether all rows of a table can be read without the key."""
        return table != ROOT and self._is_plain(table, b"")

    # -- reading ---------------------------------------------------------------------------------

    @property
    def doubtful(self) -> bool:
        return self._tables.doubtful

    def trouble(self) -> str:
        return self._tables.trouble()

    def get(self, table: str, key: bytes) -> bytes | None:
        if self._is_plain(table, key) or (rows := self._rows()) is None:
            return self._tables.get(table, key)
        if table == _NAMES:
            return self._tables.view(lambda reader: self._names(rows, reader).find(key))
        raw = self._tables.get(table, key)
        return None if raw is None else rows.opened(table, key, raw)

    def get_each(self, table: str, keys: Iterable[bytes]) -> list[bytes | None]:
        if self._is_wholly_plain(table) or self._rows() is None:
            return self._tables.get_each(table, keys)
        wanted = list(keys)
        return self.view(lambda reader: [reader.get(table, key) for key in wanted])

    def has_any(self, table: str, prefix: bytes) -> bool:
        return self._tables.has_any(table, prefix)

    def view(self, work: Callable[[TableReader], T]) -> T:
        if not self.sealed_with:
            return self._tables.view(work)
        return self._tables.view(lambda reader: work(_SealedReader(self, self._open, reader)))

    def pages(
        self, table: str, start: bytes = b"", stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        rows = None if self._is_wholly_plain(table) else self._rows()
        if rows is None:
            yield from self._tables.pages(table, start, stop, size=size)
        elif table == _NAMES:
            yield from self._pages_of_names(rows, start, stop, size)
        else:
            for page in self._tables.pages(table, start, stop, size=size):
                yield [
                    (key, value if self._is_plain(table, key) else _opened_or_empty(rows, table, key, value))
                    for key, value in page
                ]

    def _pages_of_names(
        self, rows: _Rows, start: bytes, stop: bytes | None, size: int
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        def read(reader: TableReader) -> list[tuple[bytes, bytes]]:
            return self._names(rows, reader).range(start, stop, size)

        while True:
            page = self._tables.view(read)
            if page:
                yield page
            if len(page) < size:
                return
            start = page[-1][0] + b"\0"

    def _names(self, rows: _Rows, reader: TableReader) -> NamesReader:
        return NamesReader(*_access(rows, reader), self._cache)

    def entries(self, table: str) -> int:
        if table == _NAMES and self._rows() is not None:
            return sum(map(len, self.pages(_NAMES)))
        return self._tables.entries(table)

    # -- changing --------------------------------------------------------------------------------

    def transact(self, work: Callable[[TableTransaction], T]) -> T:
        def transacted(txn: TableTransaction) -> T:
            rows = self._open
            if not self.sealed_with:
                if txn.get(ROOT, _SEALED_WITH) is None:
                    return work(txn)
                rows = self._sealing  # another thread has sealed them just now
            transaction = _SealedTransaction(self, rows, txn)
            outcome = work(transaction)
            transaction.flush()
            return outcome

        return self._tables.transact(transacted)

    def freeing(self) -> AbstractContextManager[None]:
        return self._tables.freeing()

    def close(self) -> None:
        self._tables.close()


class _SealedReader:
    """Reads of sealed tables in one state."""

    def __init__(self, tables: SealingTables, rows: _Rows | None, reader: TableReader) -> None:
        self._tables = tables
        self._opener = rows
        self._reader = reader

    def get(self, table: str, key: bytes) -> bytes | None:
        if self._tables._is_plain(table, key):
            return self._reader.get(table, key)
        if table == _NAMES:
            return self._names().find(key)
        raw = self._reader.get(table, key)
        return None if raw is None else self._rows().opened(table, key, raw)

    def _names(self) -> NamesReader:
        return self._tables._names(self._rows(), self._reader)

    def _rows(self) -> _Rows:
        return self._opener or _locked()


class _SealedTransaction(_SealedReader):
    """A transaction of sealed tables; :meth:`flush` it at the end."""

    def __init__(self, tables: SealingTables, rows: _Rows | None, txn: TableTransaction) -> None:
        super().__init__(tables, rows, txn)
        self._txn = txn
        self._writer: NamesWriter | None = None

    def put(self, table: str, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        if self._tables._is_plain(table, key):
            return self._txn.put(table, key, value, overwrite=overwrite)
        if table != _NAMES:
            return self._txn.put(table, key, self._rows().sealed(table, key, value), overwrite=overwrite)
        if not overwrite and self._names().find(key) is not None:
            return False
        self._names().put(key, value)
        return True

    def delete(self, table: str, key: bytes) -> bool:
        if table == _NAMES:
            return self._names().delete(key)
        return self._txn.delete(table, key)

    def _names(self) -> NamesWriter:
        if self._writer is None:
            self._writer = NamesWriter(*_access(self._rows(), self._txn), self._tables._cache)
        return self._writer

    def flush(self) -> None:
        """Write the pages of names that have changed."""
        if self._writer is not None:
            _flush(self._writer, self._rows(), self._txn)


def _locked() -> _Rows:
    raise KeyRequired("the catalog is encrypted, and its key was not given")


def _access(rows: _Rows, reader: TableReader) -> tuple[Get, Open]:
    return partial(reader.get, _NAMES), partial(rows.opened, _NAMES)


def _flush(names: NamesWriter, rows: _Rows, txn: TableTransaction) -> None:
    def put(number: bytes, page: bytes) -> bytes:
        stored = rows.sealed(_NAMES, number, page)
        txn.put(_NAMES, number, stored)
        return stored

    names.flush(put, partial(txn.delete, _NAMES))


def _opened_or_empty(rows: _Rows, table: str, key: bytes, raw: bytes) -> bytes:
    """Open a row among others; empty if it is damaged, so that it hides none of them."""
    try:
        return rows.decrypted(table, key, raw)
    except SealBroken:
        return b""

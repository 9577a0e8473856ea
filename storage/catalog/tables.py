"""The port for tables below a catalog: what a database must offer to hold a catalog.

It is small on purpose: single keys, pages of keys in order, and compare-and-set transactions. LMDB and a process's
memory offer this, and so does etcd, with a prefix for each table and a limited range for each page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

T = TypeVar("T")

ROOT = ""
"""The table of settings, totals and documents."""

TABLES = (ROOT, "files", "names", "nodes", "holdings", "tombstones", "unburied", "uploads", "chunk_names")


class TableReader(Protocol):
    """Reads of one committed state."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of a key; None if there is none."""


class TableTransaction(TableReader, Protocol):
    """Reads and changes that take effect together or not at all. Reads include the transaction's own changes."""

    def put(self, table: str, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        """Set a value; if ``overwrite`` is False, only if there is none. Return whether it was set."""

    def delete(self, table: str, key: bytes) -> bool:
        """Remove a key; return whether it existed."""


class Tables(Protocol):
    """Tables of bytes, ordered by key. Keys have at most 511 bytes. Thread-safe.

    Reads see the last committed state. All methods except :meth:`close` may raise StoreUnavailable, StoreClosed or
    UsedAfterFork.
    """

    @property
    def doubtful(self) -> bool:
        """Whether the tables were copied while in use and do not contain a note of it yet; see ``COPIED_IN_USE``."""

    def trouble(self) -> str:
        """Return why the tables cannot be used or written now; empty if they can. Retries after a failure."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of a key; None if there is none."""

    def get_each(self, table: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return several values, all from the same state."""

    def has_any(self, table: str, prefix: bytes) -> bool:
        """Whether any key begins with a prefix. Not for the table of names, whose keys may be sealed."""

    def view(self, work: Callable[[TableReader], T]) -> T:
        """Run ``work``, all of whose reads are of the same state. It must be short, and may be run again."""

    def pages(
        self, table: str, start: bytes = b"", stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield keys and values with start <= key < stop, in order. Each page is consistent in itself."""

    def entries(self, table: str) -> int:
        """Return the number of keys in a table."""

    def transact(self, work: Callable[[TableTransaction], T]) -> T:
        """Run ``work`` and commit durably; see :meth:`storage.catalog.port.Catalog.transact`."""

    def freeing(self) -> AbstractContextManager[None]:
        """See :meth:`storage.catalog.port.Catalog.freeing`."""

    def close(self) -> None:
        """Close the database."""

"""The tables below a catalog: what a database has to offer so that a catalog can be kept in it.

It is little on purpose: single keys, pages of keys in order, and transactions that compare and set. LMDB has it, a
process's memory has it, and so does etcd, with a prefix for each table and a range with a limit for each page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")

ROOT = ""
"""The table of the settings, the totals and the documents."""

TABLES = (ROOT, "files", "names", "nodes", "holdings", "tombstones", "unburied", "uploads")


class TableTransaction(Protocol):
    """Reads and changes that take effect together or not at all; it reads its own changes."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """A value, None if there is none."""

    def put(self, table: str, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        """Set a value; with ``overwrite`` False, only where there is none. Whether it was set."""

    def delete(self, table: str, key: bytes) -> bool:
        """Remove a key; whether it was there."""


class Tables(Protocol):
    """Tables of bytes, each ordered by its keys, which are of at most 511 bytes. Thread-safe.

    Reads see what was committed last. Each method but :meth:`close` may raise StoreUnavailable, StoreClosed or
    UsedAfterFork.
    """

    @property
    def doubtful(self) -> bool:
        """Whether they were copied while in use, and this is not noted in them yet; see ``COPIED_IN_USE``."""

    def trouble(self) -> str:
        """Why they cannot be used or written now, tried again if they could not be lately; empty if they can."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """A value, None if there is none."""

    def get_each(self, table: str, keys: Iterable[bytes]) -> list[bytes | None]:
        """Several values, all of one moment."""

    def pages(
        self, table: str, start: bytes = b"", stop: bytes | None = None, *, size: int = 4096
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        """Keys and values with start <= key < stop, in order. Each page is of one moment, the next of a later."""

    def entries(self, table: str) -> int:
        """Number of keys in a table."""

    def transact(self, work: Callable[[TableTransaction], T]) -> T:
        """Run ``work`` and commit durably; see :meth:`storage.catalog.port.Catalog.transact`."""

    def close(self) -> None:
        """Let go of the database."""

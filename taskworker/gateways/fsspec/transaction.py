"""Transactions: files that are written in one become visible when it ends, or not at all."""

from __future__ import annotations

from typing import Any

from fsspec.transaction import Transaction

from taskworker.gateways.fsspec.opened import NewContent


class StoreTransaction(Transaction):
    """Stores all files that were written in it together when it ends, or none if it ends with an error.

    Each file is stored as a whole or not at all, and small files share their commits. But files are not one unit: if
    storing one fails, for example as the disk is full, others may be stored already.
    """

    def complete(self, commit: bool = True) -> None:
        """End the transaction.

        Args:
            commit: whether to store what was written.

        Raises:
            OSError: a file could not be stored.
        """
        fs: Any = self.fs  # type: ignore[has-type]
        written = [one for one in self.files if isinstance(one, NewContent)]
        self.files.clear()
        try:
            if commit:
                fs.store_all(written)
        finally:
            for each in written:
                each.discard()
            fs._intrans = False
            fs._transaction = None
            self.fs = None

"""Types of LMDB's bindings, as the engine uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lmdb

Database = Any  # lmdb._Database has no public name
if TYPE_CHECKING:
    # Without buffers=True, keys and values are bytes.
    Transaction = lmdb.Transaction[bytes]
    Cursor = lmdb.Cursor[bytes]
else:
    Transaction = lmdb.Transaction
    Cursor = lmdb.Cursor


class GaveUp(lmdb.PanicError):
    """An environment had an error that it does not recover from."""

    def __init__(self, env: lmdb.Environment) -> None:
        super().__init__("MDB_PANIC: the environment must be reopened")
        self.env = env

"""The catalog: the small mutable state of a store, behind a port.

Implementations are loaded at their first use, so that users of the port alone do not load LMDB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.catalog.port import (
    COPIED_IN_USE,
    DESTROYED_KEYS,
    NAME_PLAIN_MAX,
    USER_KEY_BYTES,
    USER_KEYS,
    Catalog,
    CatalogTransaction,
    Counters,
    FileEntry,
    FileHead,
    ProfileCount,
    StoreSettings,
    Usage,
    name_key,
    user_key,
)
from storage.lazily import loading

if TYPE_CHECKING:
    from storage.catalog.lmdb_catalog import LmdbCatalog
    from storage.catalog.memory import MemoryCatalog, MemoryDatabase

__all__ = [
    "COPIED_IN_USE",
    "DESTROYED_KEYS",
    "NAME_PLAIN_MAX",
    "USER_KEYS",
    "USER_KEY_BYTES",
    "Catalog",
    "CatalogTransaction",
    "Counters",
    "FileEntry",
    "FileHead",
    "LmdbCatalog",
    "MemoryCatalog",
    "MemoryDatabase",
    "ProfileCount",
    "StoreSettings",
    "Usage",
    "name_key",
    "user_key",
]

__getattr__, __dir__ = loading(
    __name__,
    {
        "LmdbCatalog": "storage.catalog.lmdb_catalog",
        "MemoryCatalog": "storage.catalog.memory",
        "MemoryDatabase": "storage.catalog.memory",
    },
)

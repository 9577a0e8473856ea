"""The catalog: the small mutable state of a store, behind a port."""

from storage.catalog.lmdb_catalog import LmdbCatalog
from storage.catalog.memory import MemoryCatalog, MemoryDatabase
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
    ProfileCount,
    StoreSettings,
    Usage,
    name_key,
    user_key,
)

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
    "LmdbCatalog",
    "MemoryCatalog",
    "MemoryDatabase",
    "ProfileCount",
    "StoreSettings",
    "Usage",
    "name_key",
    "user_key",
]

"""Files in a pool (``taskworker://``) or an embedded store (``taskworker+store://``) for programs that use fsspec.

``pip install taskworker[fsspec]`` also registers both protocols, so that nothing of this needs to be imported:

>>> import pandas
>>> pandas.read_csv("taskworker://tables/a.csv")                       # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazily import loading

if TYPE_CHECKING:
    from taskworker.gateways.fsspec.filesystem import VersionedFileSystem
    from taskworker.gateways.fsspec.pool import PoolFileSystem
    from taskworker.gateways.fsspec.store import StoreFileSystem

__all__ = ["PoolFileSystem", "StoreFileSystem", "VersionedFileSystem"]

__getattr__, __dir__ = loading(
    __name__,
    {
        "PoolFileSystem": "taskworker.gateways.fsspec.pool",
        "StoreFileSystem": "taskworker.gateways.fsspec.store",
        "VersionedFileSystem": "taskworker.gateways.fsspec.filesystem",
    },
)

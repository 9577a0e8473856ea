"""Clients of a TaskWorker server: the methods of an embedded store, over gRPC.

Names are loaded when first used, so that importing one client does not load the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazily import loading

if TYPE_CHECKING:
    from taskworker.client.aio import AsyncClient
    from taskworker.client.client import Client
    from taskworker.client.fetching import RemoteFile
    from taskworker.client.revision_calls import Synchronized, SyncResult

__all__ = ["AsyncClient", "Client", "RemoteFile", "SyncResult", "Synchronized"]

__getattr__, __dir__ = loading(
    __name__,
    {
        "AsyncClient": "taskworker.client.aio",
        "Client": "taskworker.client.client",
        "RemoteFile": "taskworker.client.fetching",
        "SyncResult": "taskworker.client.revision_calls",
        "Synchronized": "taskworker.client.revision_calls",
    },
)

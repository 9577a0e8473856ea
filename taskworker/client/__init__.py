"""Clients of a TaskWorker server: what an embedded store offers, over gRPC.

Names are loaded when first used: one client is had without the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazily import loading

if TYPE_CHECKING:
    from taskworker.client.aio import AsyncClient
    from taskworker.client.client import Client, Synchronized, SyncResult
    from taskworker.client.fetching import RemoteFile

__all__ = ["AsyncClient", "Client", "RemoteFile", "SyncResult", "Synchronized"]

__getattr__, __dir__ = loading(
    __name__,
    {
        "AsyncClient": "taskworker.client.aio",
        "Client": "taskworker.client.client",
        "RemoteFile": "taskworker.client.fetching",
        "SyncResult": "taskworker.client.client",
        "Synchronized": "taskworker.client.client",
    },
)

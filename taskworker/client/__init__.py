"""Clients of a TaskWorker server: what an embedded store offers, over gRPC.

Names are loaded when first used: a command that only asks for a pool's status does without the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskworker.client.aio import AsyncClient
    from taskworker.client.client import Client, Synchronized, SyncResult
    from taskworker.client.fetching import RemoteFile

__all__ = ["AsyncClient", "Client", "RemoteFile", "SyncResult", "Synchronized"]

_HOMES = {
    "AsyncClient": "taskworker.client.aio",
    "Client": "taskworker.client.client",
    "RemoteFile": "taskworker.client.fetching",
    "SyncResult": "taskworker.client.client",
    "Synchronized": "taskworker.client.client",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value

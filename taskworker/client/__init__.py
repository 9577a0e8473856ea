"""Clients of a TaskWorker server: what an embedded store offers, over gRPC."""

from taskworker.client.aio import AsyncClient
from taskworker.client.client import Client, Synchronized, SyncResult
from taskworker.client.fetching import RemoteFile

__all__ = ["AsyncClient", "Client", "RemoteFile", "SyncResult", "Synchronized"]

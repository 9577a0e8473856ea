"""``taskworker://``: files in a pool, or on a server."""

from __future__ import annotations

import getpass
import os
import threading
import weakref
from typing import Any

from storage import StorageError
from taskworker.auth.contexts import Contexts
from taskworker.client import Client
from taskworker.gateways.fsspec.files import Files
from taskworker.gateways.fsspec.filesystem import VersionedFileSystem
from taskworker.gateways.fsspec.pool_files import PoolFiles
from taskworker.gateways.fsspec.problems import as_os_error
from taskworker.gateways.fsspec.shared import Shared

_ADDRESS = "127.0.0.1:50051"
_clients: Shared[Client] = Shared()


class PoolFileSystem(VersionedFileSystem):
    """Files in a pool, or on a server: ``taskworker://NAME``.

    It connects when it is first used, also after it was sent to another process.

    Args:
        address: where the server is; default: ``TASKWORKER_POOL``, or that of ``taskworker context use``.
        user: the owner of the files; default: ``TASKWORKER_USER``, or the name by which the server knows this login.
        token: the token to show; default: that of this login for the address.
        key: a file with a key of the user's own, which seals all files before they are sent; default: they are not.
        timeout_s: seconds that one call may take; default: no limit.
        options: those of all filesystems of fsspec.
    """

    protocol = "taskworker"

    def __init__(
        self,
        address: str | None = None,
        user: str | None = None,
        token: str | None = None,
        key: str | os.PathLike[str] | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.address = address or os.environ.get("TASKWORKER_POOL") or Contexts().current or _ADDRESS
        self.user = user or os.environ.get("TASKWORKER_USER") or _name_at(self.address)
        self._token = token
        self._key = key
        self._timeout_s = timeout_s
        self._opening = threading.Lock()
        self._opened: tuple[int, Files] | None = None

    @property
    def fsid(self) -> str:
        """Whose files these are, and where."""
        return f"taskworker-{self.address}-{self.user}"

    @property
    def files(self) -> Files:
        """The files of the user, through the connection that all filesystems of this process share."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            opened = self._connect()
        return opened[1]

    def _connect(self) -> tuple[int, Files]:
        pid = os.getpid()
        with self._opening:
            if self._opened is None or self._opened[0] != pid:
                which = (self.address, self._token, self._key, self._timeout_s)
                client = _clients.take(which, self._client)
                weakref.finalize(self, _clients.give_back, which, pid)
                self._opened = pid, PoolFiles(client, self.user)
            return self._opened

    def _client(self) -> Client:
        try:
            return Client(self.address, token=self._token, key=self._key, timeout_s=self._timeout_s)
        except StorageError as error:
            raise as_os_error(error) from error


def _name_at(address: str) -> str:
    """The name by which a server knows this login."""
    found = Contexts().find(address)
    return found.user if found is not None and not found.server else getpass.getuser()

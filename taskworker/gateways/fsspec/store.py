"""``taskworker+store://``: files in an embedded store, without a server."""

from __future__ import annotations

import errno
import getpass
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from fsspec.utils import stringify_path

from storage import FileStorage, StorageError
from storage.settings import looks_like_store
from taskworker.gateways.fsspec.files import Files
from taskworker.gateways.fsspec.filesystem import VersionedFileSystem
from taskworker.gateways.fsspec.problems import as_os_error
from taskworker.gateways.fsspec.shared import Shared
from taskworker.gateways.fsspec.store_files import StoreFiles

_stores: Shared[FileStorage] = Shared()


class StoreFileSystem(VersionedFileSystem):
    """Files in an embedded store: ``taskworker+store:///DIRECTORY/OF/STORE/NAME``, or ``taskworker+store://NAME``.

    Only one process at a time can use a store. All filesystems of a process share it, and it is closed with the last of
    them, or when the process ends.

    Args:
        path: the directory of the store, if the URL does not say it; default: ``TASKWORKER_STORE``.
        user: the owner of the files; default: ``TASKWORKER_USER``, or the name of this login.
        key: of an encrypted store: a file that has it.
        create: whether to make the store if there is none.
        store: an open store to use; it stays open.
        options: those of all filesystems of fsspec.
    """

    protocol = "taskworker+store"

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        user: str | None = None,
        key: str | os.PathLike[str] | None = None,
        create: bool = False,
        store: FileStorage | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        named = path or os.environ.get("TASKWORKER_STORE")
        if store is None and named is None:
            raise ValueError("say which store: taskworker+store:///DIRECTORY/NAME, or path=DIRECTORY")
        self.path = store.path if store is not None else Path(named or "").absolute()
        self.user = user or os.environ.get("TASKWORKER_USER") or getpass.getuser()
        self._key = key
        self._create = create
        self._opening = threading.Lock()
        self._opened: tuple[int, Files] | None = (os.getpid(), StoreFiles(store, self.user)) if store else None

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        path = stringify_path(path)
        in_store = f"{cls.protocol}:///"
        return super()._strip_protocol(_split(path)[1] if path.startswith(in_store) else path)

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        return {"path": _split(path)[0]} if path.startswith(f"{StoreFileSystem.protocol}:///") else {}

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path, which names the store as well."""
        return f"{self.protocol}://{self.path}/{self._strip_protocol(name)}"

    @property
    def fsid(self) -> str:
        """Whose files these are, and where."""
        return f"taskworker-{self.path}-{self.user}"

    @property
    def files(self) -> Files:
        """The files of the user, in the store that all filesystems of this process share."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            opened = self._open_store()
        return opened[1]

    def _open_store(self) -> tuple[int, Files]:
        pid = os.getpid()
        with self._opening:
            if self._opened is None or self._opened[0] != pid:
                place = self.path.resolve()
                try:
                    store = _stores.take(place, lambda: FileStorage.open(place, key=self._key, create=self._create))
                except StorageError as error:
                    raise as_os_error(error, str(self.path)) from error
                weakref.finalize(self, _stores.give_back, place, pid)
                self._opened = pid, StoreFiles(store, self.user)
            return self._opened


def _split(url: str) -> tuple[str, str]:
    """The directory of the store in a URL, and the path in the store.

    Raises:
        FileNotFoundError: none of the URL's directories is a store.
    """
    path = Path(url.partition("://")[2])
    for directory in (path, *path.parents):
        if directory.is_dir() and looks_like_store(directory, None):
            return str(directory), str(path.relative_to(directory)) if path != directory else ""
    raise FileNotFoundError(
        errno.ENOENT, "there is no store on this path; make one with path=DIRECTORY and create=True", str(path)
    )

"""TaskWorker: a store with a gRPC server around it, or a way to a node pool, for asyncio programs."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc
import grpc.aio

from storage import FileStorage, InvalidArgument
from taskworker.client.channel import CHANNEL_OPTIONS, target_of
from taskworker.services.files import FileService
from taskworker.services.server import FileServer
from taskworker.taskworker_pb2 import (
    GetRequest,
    GetResponse,
    PushRequest,
    PushResponse,
    ReviseRequest,
    ReviseResponse,
    SynchronousRequest,
    SynchronousResponse,
)
from taskworker.taskworker_pb2_grpc import FileServiceStub
from taskworker.wire import status

if TYPE_CHECKING:
    from taskworker.taskworker_pb2_grpc import FileServiceAsyncStub

_WORKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

ResultT = TypeVar("ResultT")


class WorkerStorage(Protocol):
    """The four file operations as coroutines over the messages of ``taskworker.taskworker_pb2``.

    A response that is returned has ``status`` true. Failures raise the engine's error family
    (``storage.StorageError`` and its classes), whether the store is in this process or behind a pool.
    """

    async def Push(self, request: PushRequest) -> PushResponse:  # noqa: N802 - the names are the contract's
        """Store bytes under (user, filename)."""
        ...

    async def Get(self, request: GetRequest) -> GetResponse:  # noqa: N802
        """The bytes of a file."""
        ...

    async def Revise(self, request: ReviseRequest) -> ReviseResponse:  # noqa: N802
        """Apply a diff to the head it was made from."""
        ...

    async def Synchronous(self, request: SynchronousRequest) -> SynchronousResponse:  # noqa: N802
        """Bring two copies into step."""
        ...


class TaskWorker:
    """A worker: standalone with an embedded store, or a member of a node pool.

    ``worker.storage`` works without a server; ``start_server`` offers the same store to others
    through gRPC. Use it as an async context manager, or call ``close``, to release the store.

    Args:
        worker_id: name of the worker: letters, digits, ``.``, ``_``, ``-``, at most 64.
        node_pool_address: ``host:port`` of a pool; ``storage`` then speaks to it. None: standalone.
        store: the directory of the embedded store (made if absent), or an open ``FileStorage``, which
            stays open when the worker closes. Default for a standalone worker:
            ``$XDG_DATA_HOME/taskworker/<worker_id>``, that is ``~/.local/share/taskworker/<worker_id>``.
        host: what to listen on: ``127.0.0.1`` or another loopback address.

    Raises:
        InvalidArgument: a worker_id that is not such a name.
    """

    def __init__(
        self,
        worker_id: str,
        node_pool_address: str | None = None,
        *,
        store: str | os.PathLike[str] | FileStorage | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        if not _WORKER_ID.fullmatch(worker_id):
            raise InvalidArgument(
                f"worker_id {worker_id!r}: use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
            )
        self.worker_id = worker_id
        self.node_pool_address = node_pool_address
        self.address: str | None = None
        self._host = host
        self._server: FileServer | None = None
        self._embedded = _embedded_store(worker_id, node_pool_address, store)
        self._pool = _PoolStorage(node_pool_address) if node_pool_address is not None else None

    @property
    def storage(self) -> WorkerStorage:
        """The files: of the pool if there is one, else of the embedded store."""
        if self._pool is not None:
            return self._pool
        assert self._embedded is not None, "a worker without a pool has a store"
        return self._embedded

    async def start_server(self, port: int = 50052) -> int:
        """Serve the embedded store, health and reflection on ``port`` (0: any free one).

        A worker of a pool that was given no ``store`` serves health and reflection only.

        Returns:
            The port bound; ``address`` has it with the host.

        Raises:
            InvalidArgument: a host other machines can reach, or the server runs already.
            StorageUnavailable: the port is taken.
            StoreLocked: another process has the store open.
        """
        if self._server is not None:
            raise InvalidArgument(f"the server of {self.worker_id} runs already on {self.address}; stop it first")
        store = await asyncio.to_thread(self._embedded.open) if self._embedded is not None else None
        server = FileServer(store)
        host = f"[{self._host}]" if ":" in self._host else self._host
        bound = await asyncio.to_thread(server.start, f"{host}:{port}")
        self._server, self.address = server, f"{host}:{bound}"
        return bound

    async def wait_for_termination(self) -> None:
        """Return when the server has been stopped, at once if none runs."""
        if self._server is not None:
            await asyncio.to_thread(self._server.wait)

    async def stop_server(self, grace_s: float = 5.0) -> None:
        """Let calls under way end within ``grace_s`` seconds, stop the server and close the store.

        Using ``storage`` afterwards opens the store again; without a running server only that is done.
        """
        server, self._server, self.address = self._server, None, None
        if server is not None:
            await asyncio.to_thread(server.stop, grace_s)
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.close)

    async def close(self) -> None:
        """Stop the server, close the store and the connection to the pool."""
        await self.stop_server()
        if self._pool is not None:
            await self._pool.close()

    async def __aenter__(self) -> TaskWorker:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.close()


def _embedded_store(
    worker_id: str, node_pool_address: str | None, store: str | os.PathLike[str] | FileStorage | None
) -> _EmbeddedStorage | None:
    if store is not None:
        return _EmbeddedStorage(store)
    return _EmbeddedStorage(default_store(worker_id)) if node_pool_address is None else None


def default_store(worker_id: str) -> Path:
    """Where a standalone worker keeps its store when none is named."""
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data_home) / "taskworker" / worker_id


class _EmbeddedStorage:
    """The store in this process, opened when first used."""

    def __init__(self, store: str | os.PathLike[str] | FileStorage) -> None:
        self._source = store
        self._lock = threading.Lock()
        self._store: FileStorage | None = None
        self._files: FileService | None = None

    def open(self) -> FileStorage:
        """The open store."""
        with self._lock:
            if self._store is None:
                source = self._source
                self._store = source if isinstance(source, FileStorage) else FileStorage.open(Path(source))
                self._files = FileService(self._store)
            return self._store

    def close(self) -> None:
        """Close the store if it was opened here."""
        with self._lock:
            store, self._store, self._files = self._store, None, None
            if store is not None and store is not self._source:
                store.close()

    async def Push(self, request: PushRequest) -> PushResponse:  # noqa: N802
        return await self._call(lambda files: files.Push(request))

    async def Get(self, request: GetRequest) -> GetResponse:  # noqa: N802
        return await self._call(lambda files: files.Get(request))

    async def Revise(self, request: ReviseRequest) -> ReviseResponse:  # noqa: N802
        return await self._call(lambda files: files.Revise(request))

    async def Synchronous(self, request: SynchronousRequest) -> SynchronousResponse:  # noqa: N802
        return await self._call(lambda files: files.Synchronous(request))

    async def _call(self, operation: Callable[[FileService], ResultT]) -> ResultT:
        def run() -> ResultT:
            store = self.open()
            return operation(self._files or FileService(store))

        return await asyncio.to_thread(run)


class _PoolStorage:
    """The stub on a pool's address, raising the engine's errors; connects when first used."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._target = target_of(address)
        self._channel: grpc.aio.Channel | None = None

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def Push(self, request: PushRequest) -> PushResponse:  # noqa: N802
        return await self._answer(self._stub().Push(request))

    async def Get(self, request: GetRequest) -> GetResponse:  # noqa: N802
        return await self._answer(self._stub().Get(request))

    async def Revise(self, request: ReviseRequest) -> ReviseResponse:  # noqa: N802
        return await self._answer(self._stub().Revise(request))

    async def Synchronous(self, request: SynchronousRequest) -> SynchronousResponse:  # noqa: N802
        return await self._answer(self._stub().Synchronous(request))

    def _stub(self) -> FileServiceAsyncStub:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS)
        return FileServiceStub(self._channel)

    async def _answer(self, call: Awaitable[ResultT]) -> ResultT:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise status.decode(error, self._address) from None

"""``TaskWorker``, for asyncio programs: a standalone server of files and functions, or a member of a node pool."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import grpc.aio

from storage import FileStorage, InvalidArgument
from storage.system.forks import HomeProcess
from taskworker.auth.contexts import AccessTo
from taskworker.auth.owner_context import keep_owner_context
from taskworker.auth.trust import Trust
from taskworker.calls.spec import LIMITS_MAX
from taskworker.functions.packing.program import Declarations
from taskworker.protos.taskworker_pb2 import (
    GetRequest,
    GetResponse,
    PushRequest,
    PushResponse,
    ReviseRequest,
    ReviseResponse,
    SynchronousRequest,
    SynchronousResponse,
)
from taskworker.protos.taskworker_pb2_grpc import FileServiceStub
from taskworker.rpc import status
from taskworker.rpc.dialling import dial_async, target_of
from taskworker.rpc.tls_problems import refined
from taskworker.sandbox import Limits
from taskworker.services.file_server import FileServer
from taskworker.services.files import FileService
from taskworker.services.store_server import StoreServer
from taskworker.worker.functions import FUNCTION_CALLS, HostedFunctions, LocalFunctions
from taskworker.worker.places import default_store
from taskworker.worker.volume import VolumeWorker

if TYPE_CHECKING:
    from taskworker.protos.taskworker_pb2_grpc import FileServiceAsyncStub

_WORKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

ResultT = TypeVar("ResultT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class WorkerStorage(Protocol):
    """The four file operations as coroutines over the messages of ``taskworker.taskworker_pb2``.

    A response that is returned has ``status`` true. Failures raise the engine's error family
    (``storage.StorageError`` and its classes), whether the store is in this process or behind a pool.
    """

    async def Push(self, request: PushRequest) -> PushResponse:  # noqa: N802 - the names are the contract's
        """Store bytes under a user's filename."""
        ...

    async def Get(self, request: GetRequest) -> GetResponse:  # noqa: N802
        """The bytes of a file."""
        ...

    async def Revise(self, request: ReviseRequest) -> ReviseResponse:  # noqa: N802
        """Apply a diff to the head version that it was made against."""
        ...

    async def Synchronous(self, request: SynchronousRequest) -> SynchronousResponse:  # noqa: N802
        """Synchronize the caller's copy with the stored file."""
        ...


class TaskWorker:
    """A worker: standalone with an embedded store, or a member of a node pool.

    ``worker.storage`` works without a server. ``start_server`` of a standalone worker offers the same
    store to others through gRPC; ``start_server`` of a pool's worker joins the pool and offers it a volume
    for shards. Use the worker as an async context manager, or call ``close``, to release its resources.

    Args:
        worker_id: name of the worker: letters, digits, ``.``, ``_``, ``-``, at most 64.
        node_pool_address: ``host:port`` of a pool, or several addresses, separated by commas, where it may be found;
            ``storage`` then uses the pool. None: standalone.
        store: the directory of the embedded store (made if absent), or an open ``FileStorage``, which
            stays open when the worker closes. Default for a standalone worker:
            ``$XDG_DATA_HOME/taskworker/<worker_id>``, that is ``~/.local/share/taskworker/<worker_id>``.
            A worker of a pool has no store of its own.
        volume: the directory of the volume for the pool's shards; the default is the same place.
        zone: the failure domain of this worker, such as a rack; the pool spreads shards over zones.
        owner: the owner of this machine; the pool spreads shards over owners before anything else.
        capacity: bytes; the worker's weight relative to the others. Default: the size of the volume's disk.
        host: the address to listen on: ``127.0.0.1`` or another loopback address.
        limits_max: the highest limits that a function may ask for on this worker; docs/functions.md has the default.
        no_auth: for tests: the server of a standalone worker asks nobody for a token, and whoever can connect to it may
            do everything. Without this, it serves its users, of whom the login that runs this program is the operator.

    Raises:
        InvalidArgument: ``worker_id`` is not such a name.
    """

    def __init__(
        self,
        worker_id: str,
        node_pool_address: str | None = None,
        *,
        store: str | os.PathLike[str] | FileStorage | None = None,
        volume: str | os.PathLike[str] | None = None,
        zone: str = "",
        owner: str = "",
        capacity: int | None = None,
        host: str = "127.0.0.1",
        limits_max: Limits = LIMITS_MAX,
        no_auth: bool = False,
    ) -> None:
        if not _WORKER_ID.fullmatch(worker_id):
            raise InvalidArgument(
                f"worker_id {worker_id!r}: use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
            )
        if node_pool_address is not None and store is not None:
            raise InvalidArgument("a worker of a pool has no store of its own: give node_pool_address or store")
        if node_pool_address is None and volume is not None:
            raise InvalidArgument("a volume is for a pool's shards: give node_pool_address as well, or store instead")
        self.worker_id = worker_id
        self.node_pool_address = node_pool_address
        self.address: str | None = None
        self._host = host
        self._limits_max = limits_max
        self._no_auth = no_auth
        self._server: FileServer | None = None
        self._member: VolumeWorker | None = None
        self._volume = Path(volume) if volume is not None else default_store(worker_id)
        self._zone, self._owner, self._capacity = zone, owner, capacity
        self._embedded = _embedded_store(worker_id, store) if node_pool_address is None else None
        self._pool = _PoolStorage(node_pool_address) if node_pool_address is not None else None
        self._declared = Declarations((TaskWorker,))
        self._hosted: HostedFunctions | None = None
        self._local: LocalFunctions | None = None

    @property
    def storage(self) -> WorkerStorage:
        """The file operations, on the pool if there is one, otherwise on the embedded store."""
        if self._pool is not None:
            return self._pool
        assert self._embedded is not None, "a worker without a pool has a store"
        return self._embedded

    # -- functions -------------------------------------------------------------------------------

    def function(self, name: str | None = None, **options: Any) -> Callable[[FunctionT], FunctionT]:
        """A decorator that offers a function to callers: ``@worker.function("name")``.

        Each call of the function runs in a fresh sandbox. Everything the function refers to has the value that
        it had when the server started. Inside, ``worker.storage`` has the files of the calling user, and
        ``worker.call`` calls other functions.

        Args:
            name: the name under which it is called; default: the function's own name.
            options: ``idempotent`` (True: may be run again if its worker is lost), ``cache_ttl`` (seconds
                that a result may be given again for the same arguments), ``concurrency`` (calls at once),
                ``queue`` (calls that may wait), ``limits`` (``taskworker.Limits``, or a
                mapping as ``{"wall_s": 5}``), ``config`` (texts that ``worker.config`` gives),
                ``isolation`` (``"call"``, or ``"user"`` with ``process_calls`` and ``process_s``: docs/functions.md).

        Raises:
            InvalidArgument: the function cannot be sent into a sandbox; the text says why.
        """

        def declare(function: FunctionT) -> FunctionT:
            self.register_function(name, function, **options)
            return function

        return declare

    def register_function(self, name: str | None, function: Callable[..., Any], **options: Any) -> None:
        """Offer a function to callers; see :meth:`function`."""
        packed = self._declared.add(name, function, options)
        if self._hosted is not None:
            self._hosted.register([packed])
        elif self._local is not None:
            self._local.register([packed])

    def get_secret(self, name: str) -> str:
        """A secret of the pool that the function is granted. It works only inside a function.

        Raises:
            InvalidArgument: always; inside a function, another object takes this one's place.
        """
        raise InvalidArgument(
            f"get_secret({name[:80]!r}) is for inside a function: secrets are given to calls of functions that they "
            f"are granted to (`taskworker secret grant {name[:80]} FUNCTION`), not to the program around them"
        )

    def call_external_api(self, url: str, *_args: Any, **_options: Any) -> Any:
        """Call an outside API; works only inside a function (``taskworker.sandbox.inside.facade.FunctionWorker``).

        Raises:
            InvalidArgument: always; inside a function, another object takes this one's place.
        """
        raise InvalidArgument(
            "worker.call_external_api works inside a function while the pool runs it, where the pool's allow-list "
            "applies; elsewhere, use an HTTP client of your own"
        )

    # -- the server ------------------------------------------------------------------------------

    async def start_server(self, port: int = 50052) -> int:
        """Serve on ``port`` (0: any free one): functions; and the embedded store, or a volume for the pool it joins.

        It waits for a pool that does not answer yet.

        Returns:
            The port bound; ``address`` has it with the host.

        Raises:
            InvalidArgument: other machines can reach the host, or the server is already running.
            StorageUnavailable: the port is taken.
            StoreLocked: another process has the store or volume open.
            WorkerRefused: the pool refuses this worker; the text says why.
            SandboxUnavailable: the program declares functions, and this machine cannot isolate them.
        """
        if self._server is not None or self._member is not None:
            raise InvalidArgument(f"the server of {self.worker_id} runs already on {self.address}; stop it first")
        host = f"[{self._host}]" if ":" in self._host else self._host
        if self.node_pool_address is not None:
            bound = await self._join(self.node_pool_address, f"{host}:{port}")
        else:
            bound = await self._serve_store(f"{host}:{port}")
        self.address = f"{host}:{bound}"
        return bound

    async def _join(self, pool_address: str, address: str) -> int:
        hosted = HostedFunctions(
            pool_address,
            self._volume / "functions",
            required=bool(self._declared),
            limits_max=self._limits_max,
        )
        member = VolumeWorker(
            self.worker_id,
            pool_address,
            self._volume,
            zone=self._zone,
            owner=self._owner,
            capacity=self._capacity,
            functions=hosted,
        )
        hosted.register(self._declared.packed())
        try:
            bound = await asyncio.to_thread(member.start, address)
        except asyncio.CancelledError:
            member.give_up()
            raise
        self._member, self._hosted = member, hosted
        return bound

    async def _serve_store(self, address: str) -> int:
        assert self._embedded is not None, "a worker without a pool has a store"
        store = await asyncio.to_thread(self._embedded.open)
        local = LocalFunctions(self.worker_id, store, self._limits_max)
        try:
            await asyncio.to_thread(local.register, self._declared.packed())
            server, bound = await asyncio.to_thread(self._started, store, local, address)
        except BaseException:
            await asyncio.to_thread(local.close)
            raise
        self._server, self._local = server, local
        return bound

    def _started(self, store: FileStorage, local: LocalFunctions, address: str) -> tuple[FileServer, int]:
        """Start a server; return it with its port."""
        if self._no_auth:
            server = FileServer(store, added=local.services(), added_calls=FUNCTION_CALLS)
            return server, server.start(address)
        guarded = StoreServer(store, local.services, FUNCTION_CALLS)

        def bound(found: str) -> None:
            keep_owner_context(guarded.users, f"store:{store.path.resolve()}", found)

        return guarded, guarded.start(address, bound=bound)

    async def wait_for_termination(self) -> None:
        """Wait until the server has stopped; return at once if none is running."""
        serving = self._server or self._member
        if serving is not None:
            await asyncio.to_thread(serving.wait)

    async def stop_server(self, grace_s: float = 5.0) -> None:
        """Give running calls ``grace_s`` seconds to end, stop the server, and close the store or volume.

        A worker leaves its pool and keeps its shards for when it comes back. Using ``storage`` afterwards
        reopens the store. Without a running server, this only closes the store.
        """
        serving, self._server, self._member, self.address = self._server or self._member, None, None, None
        local, self._local, self._hosted = self._local, None, None
        if serving is not None:
            await asyncio.to_thread(serving.stop, grace_s)
        if local is not None:
            await asyncio.to_thread(local.close)
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


def _embedded_store(worker_id: str, store: str | os.PathLike[str] | FileStorage | None) -> _EmbeddedStorage:
    return _EmbeddedStorage(default_store(worker_id) if store is None else store)


class _EmbeddedStorage:
    """The embedded store, opened on first use."""

    def __init__(self, store: str | os.PathLike[str] | FileStorage) -> None:
        self._source = store
        self._lock = threading.Lock()
        self._store: FileStorage | None = None
        self._files: FileService | None = None

    def open(self) -> FileStorage:
        """Return the store; open it if it is not open."""
        with self._lock:
            if self._store is None:
                source = self._source
                self._store = source if isinstance(source, FileStorage) else FileStorage.open(Path(source))
                self._files = FileService(self._store)
            return self._store

    def close(self) -> None:
        """Close the store, unless the program passed an open one."""
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
    """The stub of a pool, raising the engine's errors; connects on first use."""

    def __init__(self, address: str) -> None:
        self._address = address
        target_of(address)  # so that a malformed address is refused here, not by the first call
        self._access = AccessTo(address)
        self._trust: Trust | None = None
        self._channels: list[grpc.aio.Channel] = []  # the last one is used; calls on the others may be under way
        self._home = HomeProcess(f"the connection to {address}")

    async def close(self) -> None:
        channels, self._channels = self._channels, []
        if self._home.is_here:
            for channel in channels:
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
        trust = self._access().trust
        if not self._channels:
            self._home = HomeProcess(f"the connection to {self._address}")  # the process that makes it
        self._home.check()
        if not self._channels or trust != self._trust:
            self._trust = trust
            self._channels.append(dial_async(self._address, self._access))
        return FileServiceStub(self._channels[-1])

    async def _answer(self, call: Awaitable[ResultT]) -> ResultT:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            failure = status.decode(error, self._address)
            is_encrypted = self._trust is not None
            raise await asyncio.to_thread(refined, failure, self._address, is_encrypted=is_encrypted) from None

"""AsyncClient: the same client for asyncio programs."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from storage import (
    CollectReport,
    ErasureProfile,
    ManifestDiff,
    RebuildReport,
    RepairReport,
    ScrubReport,
    StoreStats,
    Version,
)
from storage.limits import BytesLike
from storage.reports import Progress
from taskworker.client.client import Client, ReadableAnywhere, Synchronized, SyncResult
from taskworker.client.differences import Changed
from taskworker.client.scope import CallScope, current_scope
from taskworker.client.sources import Pushable

if TYPE_CHECKING:
    from taskworker.client.deploying import Deployment
    from taskworker.client.functions import FunctionStatus, LogLine

ResultT = TypeVar("ResultT")

_THREADS = 32


class AsyncClient:
    """:class:`Client` with coroutines. Methods, arguments and errors are the same, described there.

    Reading, hashing and writing files blocks, so everything runs in threads of its own, up to 32 calls
    at once; the event loop only waits. Cancelling a coroutine cancels its calls on the server and
    returns when they have ended. Progress is reported from those threads.
    """

    def __init__(self, address: str, *, timeout_s: float | None = None) -> None:
        self.address = address
        self._client = Client(address, timeout_s=timeout_s)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="client")

    async def close(self) -> None:
        """End the connection and wait for calls under way, which fail."""
        self._client.close()
        await asyncio.to_thread(self._threads.shutdown)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def push(
        self,
        source: Pushable | AsyncIterable[BytesLike],
        *,
        user_id: str,
        filename: str | None = None,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        time_ms: int | None = None,
        note: str = "",
        sha256: str | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Version:
        """See :meth:`Client.push`; ``source`` may be an asynchronous iterable of bytes as well."""
        content = _iterated_here(source) if isinstance(source, AsyncIterable) else source
        return await self._run(
            lambda: self._client.push(
                content,
                user_id=user_id,
                filename=filename,
                profile=profile,
                chunk_size=chunk_size,
                time_ms=time_ms,
                note=note,
                sha256=sha256,
                progress=progress,
                timeout_s=timeout_s,
            )
        )

    async def get(
        self,
        file_id: str,
        *,
        user_id: str,
        version_id: str | None = None,
        offset: int = 0,
        length: int | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """See :meth:`Client.get`; ranges take the place of ``Client.open``."""
        return await self._run(
            lambda: self._client.get(
                file_id,
                user_id=user_id,
                version_id=version_id,
                offset=offset,
                length=length,
                progress=progress,
                timeout_s=timeout_s,
            )
        )

    async def download(
        self,
        file_id: str,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        user_id: str,
        version_id: str | None = None,
        offset: int = 0,
        length: int | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Version:
        """See :meth:`Client.download`."""
        return await self._run(
            lambda: self._client.download(
                file_id,
                target,
                user_id=user_id,
                version_id=version_id,
                offset=offset,
                length=length,
                progress=progress,
                timeout_s=timeout_s,
            )
        )

    async def diff(
        self,
        file_id: str,
        source: ReadableAnywhere,
        *,
        user_id: str,
        base_version_id: str | None = None,
        changed: Changed | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> ManifestDiff:
        """See :meth:`Client.diff`."""
        return await self._run(
            lambda: self._client.diff(
                file_id,
                source,
                user_id=user_id,
                base_version_id=base_version_id,
                changed=changed,
                progress=progress,
                timeout_s=timeout_s,
            )
        )

    async def revise(
        self,
        file_id: str,
        source: ReadableAnywhere,
        *,
        user_id: str,
        base_version_id: str | None = None,
        changed: Changed | None = None,
        sha256: str | None = None,
        time_ms: int | None = None,
        note: str = "",
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Version:
        """See :meth:`Client.revise`."""
        return await self._run(
            lambda: self._client.revise(
                file_id,
                source,
                user_id=user_id,
                base_version_id=base_version_id,
                changed=changed,
                sha256=sha256,
                time_ms=time_ms,
                note=note,
                progress=progress,
                timeout_s=timeout_s,
            )
        )

    async def apply(
        self,
        file_id: str,
        diff: ManifestDiff,
        *,
        user_id: str,
        sha256: str | None = None,
        time_ms: int | None = None,
        note: str = "",
        timeout_s: float | None = None,
    ) -> Version:
        """See :meth:`Client.apply`."""
        return await self._run(
            lambda: self._client.apply(
                file_id, diff, user_id=user_id, sha256=sha256, time_ms=time_ms, note=note, timeout_s=timeout_s
            )
        )

    async def synchronize(
        self,
        file_id: str,
        *,
        user_id: str,
        have_version_id: str,
        diff: ManifestDiff | None = None,
        timeout_s: float | None = None,
    ) -> Synchronized:
        """See :meth:`Client.synchronize`."""
        return await self._run(
            lambda: self._client.synchronize(
                file_id, user_id=user_id, have_version_id=have_version_id, diff=diff, timeout_s=timeout_s
            )
        )

    async def sync(
        self,
        file_id: str,
        path: str | os.PathLike[str],
        *,
        user_id: str,
        base_version_id: str,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> SyncResult:
        """See :meth:`Client.sync`."""
        return await self._run(
            lambda: self._client.sync(
                file_id,
                path,
                user_id=user_id,
                base_version_id=base_version_id,
                progress=progress,
                timeout_s=timeout_s,
            )
        )

    async def stat(
        self, file_id: str, *, user_id: str, version_id: str | None = None, timeout_s: float | None = None
    ) -> Version:
        """See :meth:`Client.stat`."""
        return await self._run(
            lambda: self._client.stat(file_id, user_id=user_id, version_id=version_id, timeout_s=timeout_s)
        )

    async def find(self, filename: str, *, user_id: str, timeout_s: float | None = None) -> Version | None:
        """See :meth:`Client.find`."""
        return await self._run(lambda: self._client.find(filename, user_id=user_id, timeout_s=timeout_s))

    async def history(
        self,
        file_id: str,
        *,
        user_id: str,
        limit: int | None = None,
        before: str | None = None,
        timeout_s: float | None = None,
    ) -> list[Version]:
        """See :meth:`Client.history`."""
        return await self._run(
            lambda: self._client.history(file_id, user_id=user_id, limit=limit, before=before, timeout_s=timeout_s)
        )

    async def list_files(
        self,
        *,
        user_id: str,
        prefix: str = "",
        after: str | None = None,
        limit: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Version]:
        """See :meth:`Client.list_files`."""
        return await self._run(
            lambda: self._client.list_files(
                user_id=user_id, prefix=prefix, after=after, limit=limit, timeout_s=timeout_s
            )
        )

    async def iter_files(
        self, *, user_id: str, prefix: str = "", timeout_s: float | None = None
    ) -> AsyncIterator[Version]:
        """See :meth:`Client.iter_files`."""
        files = self._client.iter_files(user_id=user_id, prefix=prefix, timeout_s=timeout_s)
        while (version := await self._run(lambda: next(files, None))) is not None:
            yield version

    async def delete(self, file_id: str, *, user_id: str, timeout_s: float | None = None) -> None:
        """See :meth:`Client.delete`."""
        await self._run(lambda: self._client.delete(file_id, user_id=user_id, timeout_s=timeout_s))

    async def delete_files(self, file_ids: Sequence[str], *, user_id: str, timeout_s: float | None = None) -> None:
        """See :meth:`Client.delete_files`."""
        await self._run(lambda: self._client.delete_files(file_ids, user_id=user_id, timeout_s=timeout_s))

    async def call(
        self,
        function: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> Any:
        """See :meth:`Client.call`."""
        return await self._run(lambda: self._client.call(function, args, kwargs, user_id=user_id, timeout_s=timeout_s))

    async def stream(
        self,
        function: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        user_id: str,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Any]:
        """See :meth:`Client.stream`."""
        items = self._client.stream(function, args, kwargs, user_id=user_id, timeout_s=timeout_s)
        ended = object()
        try:
            while (item := await self._run(lambda: next(items, ended))) is not ended:
                yield item
        finally:
            await self._run(items.close)

    async def deploy(
        self,
        name: str,
        entry: str,
        *,
        user_id: str,
        directory: str | os.PathLike[str] = ".",
        include: Sequence[str] = (),
        requirements: str | os.PathLike[str] | None = None,
        dry_run: bool = False,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Deployment:
        """See :meth:`Client.deploy`. What was sent to the pool goes on when this is cancelled."""
        return await self._run(
            lambda: self._client.deploy(
                name,
                entry,
                user_id=user_id,
                directory=directory,
                include=include,
                requirements=requirements,
                dry_run=dry_run,
                timeout_s=timeout_s,
                **options,
            )
        )

    async def functions(self, *, timeout_s: float | None = None) -> list[FunctionStatus]:
        """See :meth:`Client.functions`."""
        return await self._run(lambda: self._client.functions(timeout_s=timeout_s))

    async def logs(
        self, function: str = "", *, call_id: str = "", since_ms: int = 0, tail: int | None = None, follow: bool = False
    ) -> AsyncIterator[LogLine]:
        """See :meth:`Client.logs`."""
        lines = self._client.logs(function, call_id=call_id, since_ms=since_ms, tail=tail, follow=follow)
        try:
            while (line := await self._run(lambda: next(lines, None))) is not None:
                yield line
        finally:
            await self._run(lines.close)

    async def resolve(self, name: str, type: str = "A", *, timeout_s: float | None = None) -> list[str]:  # noqa: A002
        """See :meth:`Client.resolve`."""
        return await self._run(lambda: self._client.resolve(name, type, timeout_s=timeout_s))

    async def stats(self, *, timeout_s: float | None = None) -> StoreStats:
        """See :meth:`Client.stats`."""
        return await self._run(lambda: self._client.stats(timeout_s=timeout_s))

    async def scrub(self, *, progress: Progress | None = None, timeout_s: float | None = None) -> ScrubReport:
        """See :meth:`Client.scrub`."""
        return await self._run(lambda: self._client.scrub(progress=progress, timeout_s=timeout_s))

    async def repair(self, *, progress: Progress | None = None, timeout_s: float | None = None) -> RepairReport:
        """See :meth:`Client.repair`."""
        return await self._run(lambda: self._client.repair(progress=progress, timeout_s=timeout_s))

    async def collect(
        self, *, progress: Progress | None = None, grace_s: float | None = None, timeout_s: float | None = None
    ) -> CollectReport:
        """See :meth:`Client.collect`."""
        return await self._run(lambda: self._client.collect(progress=progress, grace_s=grace_s, timeout_s=timeout_s))

    async def rebuild(self, *, progress: Progress | None = None, timeout_s: float | None = None) -> RebuildReport:
        """See :meth:`Client.rebuild`."""
        return await self._run(lambda: self._client.rebuild(progress=progress, timeout_s=timeout_s))

    async def _run(self, operation: Callable[[], ResultT]) -> ResultT:
        """``operation()`` in a thread; cancelling this cancels the calls it makes."""
        scope = CallScope()
        context = contextvars.copy_context()
        context.run(current_scope.set, scope)
        running = asyncio.get_running_loop().run_in_executor(self._threads, context.run, operation)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            scope.cancel()
            await asyncio.wait((running,))
            if not running.cancelled():
                running.exception()  # what became of it interests nobody; unasked, asyncio would log it
            raise


def _iterated_here(source: AsyncIterable[BytesLike]) -> Iterator[BytesLike]:
    """An iterator for another thread over what the running loop's ``source`` gives."""
    loop = asyncio.get_running_loop()
    pieces = aiter(source)

    async def following() -> BytesLike | None:
        return await anext(pieces, None)

    def iterate() -> Iterator[BytesLike]:
        while (piece := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
            yield piece

    return iterate()

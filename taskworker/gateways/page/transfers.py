"""Files on their way from and to browsers, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from storage import Version
from storage.errors import InvalidArgument
from taskworker.client import Client, RemoteFile
from taskworker.errors import CallAbandoned, DeadlineExceeded

TRANSFERS_MAX = 24
TRANSFERS_EACH_MAX = 6
"""Of one user."""
_PIECE = 256 * 1024
_PIECE_S = 60.0
"""How long a browser may take for a piece of this size."""
_STOP_S = 10.0
UPLOAD_S = 24 * 3600.0


async def upload(request: Request, client: Client, threads: Executor, *, owner: str, name: str) -> Version:
    """Store the body of a request as a file, in bounded memory.

    Raises:
        InvalidArgument: nobody can have a file of this name.
        CallAbandoned: the browser left before it had sent everything; nothing was stored.
        DeadlineExceeded: it sends too slowly; nothing was stored.
        StorageError: it cannot be stored.
    """
    check_name(name)
    loop = asyncio.get_running_loop()
    pieces = aiter(_pieces(request))

    async def following() -> bytes | None:
        return await anext(pieces, None)

    def content() -> Iterator[bytes]:
        while piece := asyncio.run_coroutine_threadsafe(following(), loop).result(_PIECE_S + _STOP_S):
            yield piece

    def push() -> Version:
        return client.push(content(), user_id=owner, filename=name, timeout_s=UPLOAD_S)

    return await loop.run_in_executor(threads, push)


def check_name(name: str) -> None:
    """Refuse names that lead elsewhere once the file is fetched into a directory.

    Raises:
        InvalidArgument: it is one of these.
    """
    if not name or name.startswith("/") or name.endswith("/") or {"", ".", ".."} & set(name.split("/")):
        raise InvalidArgument(
            f"{name[:200]!r} is no name for a file: none of its parts between slashes may be empty, `.` or `..`"
        )


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body, in pieces of about 256 KiB."""
    waiting: list[bytes] = []
    size = 0
    loop = asyncio.get_running_loop()
    stream, until_s = aiter(request.stream()), loop.time() + _PIECE_S
    try:
        while True:
            async with asyncio.timeout_at(until_s):
                piece = await anext(stream, None)
            if piece is None:
                break
            waiting.append(piece)
            size += len(piece)
            if size >= _PIECE:
                yield b"".join(waiting)
                waiting, size = [], 0
                until_s = loop.time() + _PIECE_S
    except TimeoutError:
        raise DeadlineExceeded(
            f"less than {_PIECE >> 10} KiB of the file came within {_PIECE_S:.0f} s; upload it again"
        ) from None
    except ClientDisconnect:
        raise CallAbandoned("the browser left before it had sent the whole file; nothing was stored") from None
    if waiting:
        yield b"".join(waiting)


class FileReply(StreamingResponse):
    """A file, of which the browser must take each piece in time.

    Args:
        file: what is sent; closed at the end.
        threads: where it is read.
        headers: of the reply.
        on_end: called at the end.
    """

    def __init__(
        self, file: RemoteFile, threads: Executor, headers: dict[str, str], on_end: Callable[[], None]
    ) -> None:
        self._file = file
        self._threads = threads
        self._on_end = on_end
        super().__init__(self._content(), headers=headers)

    async def __call__(self, scope: object, receive: object, send: object) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)  # type: ignore[arg-type]
        finally:
            self._on_end()
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, self._file.close))

    async def stream_response(self, send: Send) -> None:
        """Send it, within the time."""

        async def paced(message: Message) -> None:
            async with asyncio.timeout(_PIECE_S):
                await send(message)

        await super().stream_response(paced)

    async def _content(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        while piece := await loop.run_in_executor(self._threads, self._file.read, _PIECE):
            yield piece

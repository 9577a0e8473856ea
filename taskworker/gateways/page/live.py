"""Keeps open windows up to date by server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from storage.errors import StorageError
from taskworker.errors import Unauthenticated
from taskworker.gateways.page.viewing import Region

STREAMS_EACH_MAX = 6
"""Windows of one session that are kept up to date."""
STREAMS_MAX = 200
_SEND_S = 20.0
"""How long a browser may take to accept an event."""
_QUIET_S = 15.0
"""After so long without an event, a comment is sent, so that a browser that is gone is noticed."""
_TROUBLE_EVERY_S = 5.0

ENDED = "event: ended\ndata: {}\n\n"
"""Says that nobody is signed in any more."""


class LiveReply(StreamingResponse):
    """Events, each of which the browser must accept in time.

    Args:
        told: the events.
        on_end: called at the end.
    """

    def __init__(self, told: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        super().__init__(told, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()

    async def stream_response(self, send: Send) -> None:
        """Send them."""

        async def paced(message: object) -> None:
            async with asyncio.timeout(_SEND_S):
                await send(message)  # type: ignore[arg-type]

        try:
            await super().stream_response(paced)
        except TimeoutError:
            return


async def events(
    is_on: Callable[[], bool],
    load: Callable[[], Awaitable[list[Region]]],
    every_s: float,
    stopping: asyncio.Event,
) -> AsyncIterator[str]:
    """Yield what has changed, until the session ends.

    Args:
        is_on: whether the window's session has not ended.
        load: returns the parts of the page as they are now.
        every_s: how often to look, in seconds.
        stopping: set when the server stops, so that the events end.
    """
    window = _Window()
    quiet_s = 0.0
    yield "retry: 3000\n\n"
    while is_on():
        try:
            told, pause_s = window.changes(await load()), every_s
        except Unauthenticated:
            break
        except StorageError as error:
            told, pause_s = window.trouble(str(error)), max(every_s, _TROUBLE_EVERY_S)
        if not told and quiet_s >= _QUIET_S:
            told = [": still here\n\n"]
        for event in told:
            yield event
            quiet_s = 0.0
        if await _is_set_within(stopping, pause_s):
            return
        quiet_s += pause_s
    yield ENDED


class _Window:
    """What an open window shows."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}
        self._trouble = ""

    def changes(self, regions: list[Region]) -> list[str]:
        """Events that tell of parts of the page that it does not show yet."""
        new = [region for region in regions if self._shown.get(region.name) != region.digest]
        self._shown.update((region.name, region.digest) for region in new)
        return self.trouble("") + [
            _event("region", {"name": region.name, "digest": region.digest, "html": region.html}) for region in new
        ]

    def trouble(self, text: str) -> list[str]:
        """The event that tells why there is nothing new, or that there is again (empty), unless it was told already."""
        if text == self._trouble:
            return []
        self._trouble = text
        return [_event("trouble", {"text": text})]


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _event(kind: str, data: dict[str, str]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"

"""Keeps open windows up to date by server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.responses import StreamingResponse
from starlette.types import Send

from storage.errors import StorageError
from taskworker.errors import Unauthenticated
from taskworker.gateways.page.sessions import Session
from taskworker.gateways.page.viewing import Region

STREAMS_EACH_MAX = 6
"""Windows of one session that are kept up to date."""
STREAMS_MAX = 200
_SEND_S = 20.0
"""How long a browser may take to accept an event."""
_QUIET_S = 15.0
"""After so long without an event, a comment is sent, so that a browser that is gone is noticed."""
_TROUBLE_EVERY_S = 5.0


class LiveReply(StreamingResponse):
    """Events, each of which the browser must accept in time."""

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
    session: Session,
    is_on: Callable[[], bool],
    load: Callable[[], Awaitable[list[Region]]],
    every_s: float,
) -> AsyncIterator[str]:
    """Yield what has changed, until the session ends.

    Args:
        session: whose window it is.
        is_on: whether the session has not ended.
        load: returns the parts of the page as they are now.
        every_s: how often to look, in seconds.
    """
    shown: dict[str, str] = {}
    quiet_s = 0.0
    trouble = ""
    session.streams += 1
    try:
        yield "retry: 3000\n\n"
        while is_on():
            pause_s = every_s
            try:
                regions = await load()
            except Unauthenticated:
                break
            except StorageError as error:
                pause_s = max(every_s, _TROUBLE_EVERY_S)
                if trouble != str(error):
                    trouble = str(error)
                    yield _event("trouble", {"text": trouble})
                    quiet_s = 0.0
            else:
                if trouble:
                    trouble = ""
                    yield _event("trouble", {"text": ""})
                for region in regions:
                    if shown.get(region.name) != region.digest:
                        shown[region.name] = region.digest
                        quiet_s = 0.0
                        yield _event("region", {"name": region.name, "digest": region.digest, "html": region.html})
            await asyncio.sleep(pause_s)
            quiet_s += pause_s
            if quiet_s >= _QUIET_S:
                quiet_s = 0.0
                yield ": still here\n\n"
        yield _event("ended", {})
    finally:
        session.streams -= 1


def _event(kind: str, data: dict[str, str]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"

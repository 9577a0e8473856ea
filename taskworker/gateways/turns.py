"""Turns at something of which there is little, which users or hosts share. For one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskworker.errors import ServerBusy
from taskworker.shares import SharedAmount

_WAITING_EACH_MAX = 32
_WITHIN_S = 20.0


class Turns:
    """Places that users, or hosts, share. Who finds none waits for one.

    A place that becomes free is for those who have fewest.

    Args:
        places: how many there are.
        what: what they are for, for error texts: "too many … at this moment".
        times: each may have this many times the number of free places: half of all, if it is 1.
        waiting: how many of each may wait.
        within_s: how long somebody waits.
    """

    def __init__(
        self,
        places: int,
        what: str,
        *,
        times: float = 1,
        waiting: int = _WAITING_EACH_MAX,
        within_s: float = _WITHIN_S,
    ) -> None:
        self._places = SharedAmount(places, times=times)
        self._what = what
        self._waiting_max = waiting
        self._within_s = within_s
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by user or host; no queue is empty

    @asynccontextmanager
    async def one(self, whose: str) -> AsyncIterator[None]:
        """Hold a place for somebody.

        Args:
            whose: the user, or the host.

        Raises:
            ServerBusy: none became free in time, or too many wait for one.
        """
        if whose in self._waiting or not self._places.take(whose):
            await self._wait(whose)
        try:
            yield
        finally:
            self._give_back(whose)

    async def _wait(self, whose: str) -> None:
        if len(self._waiting.get(whose, ())) >= self._waiting_max:
            raise self._busy()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(turn)
        try:
            async with asyncio.timeout(self._within_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it came in the same moment
                self._give_back(whose)
            else:
                turn.cancel()
                self._leave(whose, turn)
            if isinstance(error, TimeoutError):
                raise self._busy() from None
            raise

    def _give_back(self, whose: str) -> None:
        self._places.give_back(whose)
        for waiting in sorted(self._waiting, key=self._places.of):
            queue = self._waiting[waiting]
            while queue and (queue[0].done() or self._places.take(waiting)):
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
            if not queue:
                del self._waiting[waiting]

    def _leave(self, whose: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(whose, deque())
        if turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[whose]

    def _busy(self) -> ServerBusy:
        return ServerBusy(f"too many {self._what} at this moment; try again in a while")

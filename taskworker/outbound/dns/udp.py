"""DNS over UDP."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from taskworker.outbound.dns import messages
from taskworker.outbound.dns.answers import Resolved
from taskworker.outbound.dns.budget import ReplyBudget
from taskworker.outbound.dns.messages import Question
from taskworker.outbound.dns.resolver import Resolver

log = logging.getLogger(__name__)

_BURST = 64  # questions handled before other tasks of the loop run
_READY_MAX = 4096
_WAITING_MAX = 1000

Peer = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Ready:
    """A reply without its id, the time until which it is valid unchanged, and the shortened reply."""

    until_s: float
    whole: bytes
    short: bytes


class UdpService:
    """Answers questions over UDP. All methods must run in the thread of its event loop.

    It reads many datagrams from the socket in each iteration of the loop, where asyncio's transport reads one.

    Args:
        resolver: answers the questions.
        budget: limits the size of replies.
        clock_s: monotonic seconds.
    """

    def __init__(self, resolver: Resolver, budget: ReplyBudget, *, clock_s: Callable[[], float]) -> None:
        self._resolver = resolver
        self._budget = budget
        self._clock_s = clock_s
        # Replies by question, without its id. They are valid for at most a second, so clearing all of them when
        # this is full costs little.
        self._ready: dict[bytes, _Ready] = {}
        self._waiting: set[asyncio.Task[None]] = set()

    def start(self, bound: socket.socket) -> None:
        """Start serving on a bound socket, which this object closes in the end."""
        self._socket = bound
        asyncio.get_running_loop().add_reader(bound, self._readable)

    async def stop(self) -> None:
        """Accept no more questions, and drop pending ones."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)

    def _readable(self) -> None:
        receive, clock_s = self._socket.recvfrom, self._clock_s
        for _ in range(_BURST):
            try:
                wire, peer = receive(messages.QUERY_BYTES_MAX + 1)
            except OSError:  # no more datagrams, or an error about a client that is gone
                return
            ready = self._ready.get(wire[2:])
            if ready is not None and clock_s() < ready.until_s:
                self._send(wire, ready.whole, ready.short, peer)
            else:
                self._take(wire, peer)

    def _send(self, wire: bytes, whole: bytes, short: bytes, peer: Peer) -> None:
        """Send a reply that has no id yet; the shortened one if the budget is used up."""
        allowed = self._budget.allows(peer[0], len(whole) + 2 - len(wire))
        try:
            self._socket.sendto(wire[:2] + (whole if allowed else short), peer)
        except OSError as error:  # the buffer is full, or the client unreachable; UDP may lose replies
            log.debug("a reply to %s was not sent: %s", peer[0], error)

    def _take(self, wire: bytes, peer: Peer) -> None:
        try:
            question = messages.read(wire, over_tcp=False)
            if isinstance(question, bytes):
                self._send(wire, question[2:], question[2:], peer)
            elif question is not None:
                self._answer(question, wire, peer)
        except Exception as error:  # whatever it was, go on with the next question
            log.error("a question from %s could not be answered", peer[0], exc_info=error)

    def _answer(self, question: Question, wire: bytes, peer: Peer) -> None:
        found = self._resolver.at_hand(question.name, question.kind) if question.settled is None else None
        if question.settled is not None:
            found = Resolved(question.settled, 1.0)
        if found is not None:
            self._reply(question, found, wire, peer)
        elif len(self._waiting) < _WAITING_MAX:
            task = asyncio.create_task(self._look_up(question, wire, peer))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        else:
            failure = messages.failed(wire)[2:]
            self._send(wire, failure, failure, peer)

    async def _look_up(self, question: Question, wire: bytes, peer: Peer) -> None:
        try:
            self._reply(question, await self._resolver.resolve(question.name, question.kind), wire, peer)
        except Exception as error:
            log.error("a question from %s could not be answered", peer[0], exc_info=error)

    def _reply(self, question: Question, found: Resolved, wire: bytes, peer: Peer) -> None:
        whole = messages.reply(question, found.answer)
        ready = _Ready(self._clock_s() + found.holds_s, whole[2:], messages.shortened(question, whole)[2:])
        if found.holds_s > 0:
            if len(self._ready) >= _READY_MAX:
                self._ready.clear()
            self._ready[wire[2:]] = ready
        self._send(wire, ready.whole, ready.short, peer)

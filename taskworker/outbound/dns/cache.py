"""A bounded cache of answers, which renews answers before they expire, and serves stale ones rather than none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cachetools import TLRUCache
from dns.edns import EDECode
from dns.name import Name
from dns.rcode import Rcode
from dns.rdatatype import RdataType

from taskworker.outbound.dns.answers import Answer, Key, Resolved, refusal
from taskworker.outbound.dns.upstream import NameServersFailed

log = logging.getLogger(__name__)

BYTES_MAX = 8 << 20
_STALE_MAX_S = 86_400.0  # RFC 8767 suggests one to three days
_STALE_TTL_S = 30  # RFC 8767
_STALE_AFTER_S = 1.8  # RFC 8767: clients give up after two seconds and more
_RETRY_S = 30.0  # RFC 8767: the pause after a failure
_FAILURE_TTL_S = 5  # RFC 9520: failures are kept for one second at least
_PREFETCH_SHARE = 0.1  # unbound's
_FETCHES_MAX = 512

Fetch = Callable[[Name, RdataType], Awaitable[Answer]]


@dataclass(slots=True)
class _Entry:
    answer: Answer
    stored_s: float
    retry_at_s: float = 0.0

    def age_s(self, now: float) -> float:
        return now - self.stored_s


class AnswerCache:
    """A cache of answers by name and type; for one event loop.

    While a question is pending, equal ones wait for the same answer: this is faster, and gives a forger of answers only
    one chance.

    Args:
        fetch: asks the name servers; raises NameServersFailed.
        clock_s: monotonic seconds.
        bytes_max: bytes that all answers together take in memory, about.
        stale_after_s: seconds that a client waits for a fresh answer while there is a stale one.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        clock_s: Callable[[], float],
        bytes_max: int = BYTES_MAX,
        stale_after_s: float = _STALE_AFTER_S,
    ) -> None:
        self._fetch = fetch
        self._clock_s = clock_s
        self._stale_after_s = stale_after_s
        self._entries: TLRUCache[Key, _Entry] = TLRUCache(
            bytes_max,
            ttu=lambda _key, entry, now: now + entry.answer.ttl_s + _STALE_MAX_S,
            timer=clock_s,
            getsizeof=lambda entry: entry.answer.size,
        )
        self._fetching: dict[Key, asyncio.Task[Answer]] = {}

    def at_hand(self, name: Name, kind: RdataType) -> Resolved | None:
        """The cached answer, if it is valid; close to its expiry, it is renewed in the background."""
        key, now = (name, kind), self._clock_s()
        entry = self._entries.get(key)
        if entry is None:
            return None
        left = entry.answer.ttl_s - entry.age_s(now)
        if left <= 0:
            return _late(entry) if now < entry.retry_at_s else None
        if left <= _PREFETCH_SHARE * entry.answer.ttl_s and now >= entry.retry_at_s:
            self._renew(key)
        age = entry.age_s(now)
        return Resolved(entry.answer.aged(int(age)), min(left, 1.0 - age % 1.0))

    async def get(self, name: Name, kind: RdataType) -> Resolved:
        """The cached answer, otherwise the name servers' answer; a stale one if they do not answer in time."""
        key = (name, kind)
        here = self.at_hand(name, kind)
        if here is not None:
            return here
        old = self._entries.get(key)
        fetching = self._renew(key)
        if fetching is None:
            return Resolved(refusal(Rcode.SERVFAIL, EDECode.OTHER, "too many questions are under way"), 0.0)
        if old is None or old.answer.rcode == Rcode.SERVFAIL:
            return Resolved(await asyncio.shield(fetching), 0.0)
        try:
            return Resolved(await asyncio.wait_for(asyncio.shield(fetching), self._stale_after_s), 0.0)
        except TimeoutError:
            old.retry_at_s = self._clock_s() + _RETRY_S
            return _late(old)

    def close(self) -> None:
        """Cancel all pending questions."""
        for task in self._fetching.values():
            task.cancel()

    def _renew(self, key: Key) -> asyncio.Task[Answer] | None:
        """Ask for a key, unless that is pending already; None if too many questions are pending."""
        task = self._fetching.get(key)
        if task is None and len(self._fetching) < _FETCHES_MAX:
            task = self._fetching[key] = asyncio.create_task(self._fetched(key))
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: Key, task: asyncio.Task[Answer]) -> None:
        del self._fetching[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("looking up %s failed", key[0], exc_info=error)

    async def _fetched(self, key: Key) -> Answer:
        try:
            answer = await self._fetch(*key)
        except NameServersFailed as error:
            return self._failed(key, str(error))
        self._keep(key, answer)
        return answer

    def _failed(self, key: Key, text: str) -> Answer:
        old = self._entries.get(key)
        if old is not None and old.answer.rcode != Rcode.SERVFAIL:
            old.retry_at_s = self._clock_s() + _RETRY_S
            return _late(old).answer
        failure = refusal(Rcode.SERVFAIL, EDECode.NO_REACHABLE_AUTHORITY, text, _FAILURE_TTL_S)
        self._keep(key, failure)
        return failure

    def _keep(self, key: Key, answer: Answer) -> None:
        self._entries.pop(key, None)
        if answer.ttl_s > 0 and answer.size <= self._entries.maxsize:
            self._entries[key] = _Entry(answer, self._clock_s())


def _late(entry: _Entry) -> Resolved:
    return Resolved(entry.answer.stale(_STALE_TTL_S), 1.0)

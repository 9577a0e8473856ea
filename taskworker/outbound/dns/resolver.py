"""Resolves any name: by the pool's zone, fixed local names, policy, cache, and name servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import dns.name
import dns.rdata
from dns.name import Name
from dns.rcode import Rcode
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType
from dns.rrset import RRset

from taskworker.outbound.dns.answers import Answer, Resolved
from taskworker.outbound.dns.cache import AnswerCache
from taskworker.outbound.dns.policy import Policy
from taskworker.outbound.dns.upstream import NameServersFailed, Upstream
from taskworker.outbound.dns.zone import APEX, Zone

_LOCALHOST = dns.name.from_text("localhost.")
_NEVER_ASKED = (dns.name.from_text("invalid."), dns.name.from_text("onion."))  # RFC 6761, RFC 7686
_FIXED_TTL_S = 3_600
_FIXED = {RdataType.A: "127.0.0.1", RdataType.AAAA: "::1"}


class NamesUse(NamedTuple):
    """How questions for names were answered.

    Attributes:
        at_hand: how many at once: from the cache, the pool's zone, or what is fixed or refused.
        asked: how many were forwarded to name servers.
        failed: how many of these no name server answered.
    """

    at_hand: int
    asked: int
    failed: int


class Resolver:
    """Resolves names; for one event loop.

    Args:
        zone: the pool's own zone.
        policy: which names and answers to refuse.
        upstream: forwards all other questions.
        clock_s: monotonic seconds.
        stale_after_s: see ``AnswerCache``.
    """

    def __init__(
        self, zone: Zone, policy: Policy, upstream: Upstream, *, clock_s: Callable[[], float], stale_after_s: float
    ) -> None:
        self._zone = zone
        self._policy = policy
        self._upstream = upstream
        self._cache = AnswerCache(self._ask, clock_s=clock_s, stale_after_s=stale_after_s)
        self._at_hand = self._asked = self._failed = 0

    def at_hand(self, name: Name, kind: RdataType) -> Resolved | None:
        """The answer, if it is known without asking name servers."""
        found = self._known(name, kind)
        self._at_hand += found is not None
        return found

    def use(self) -> NamesUse:
        """How questions were answered since this resolver was made."""
        return NamesUse(self._at_hand, self._asked, self._failed)

    def _known(self, name: Name, kind: RdataType) -> Resolved | None:
        if name.is_subdomain(APEX):
            return self._zone.answer(name, kind)
        fixed = _fixed(name, kind) or self._policy.refusal_of(name)
        if fixed is not None:
            return Resolved(fixed, 1.0)
        return self._cache.at_hand(name, kind)

    async def resolve(self, name: Name, kind: RdataType) -> Resolved:
        """The answer; if there are no records, it says why."""
        return self.at_hand(name, kind) or await self._cache.get(name, kind)

    def close(self) -> None:
        """Cancel all pending questions."""
        self._cache.close()

    async def _ask(self, name: Name, kind: RdataType) -> Answer:
        self._asked += 1
        try:
            return self._policy.judged(name, await self._upstream.ask(name, kind))
        except NameServersFailed:
            self._failed += 1
            raise


def is_internal(name: Name) -> bool:
    """Whether a name belongs to the pool's own zone."""
    return name.is_subdomain(APEX)


def _fixed(name: Name, kind: RdataType) -> Answer | None:
    if name.is_subdomain(_LOCALHOST):
        if kind not in _FIXED:
            return Answer(Rcode.NOERROR)
        rrset = RRset(name, RdataClass.IN, kind)
        rrset.add(dns.rdata.from_text(RdataClass.IN, kind, _FIXED[kind]), _FIXED_TTL_S)
        return Answer(Rcode.NOERROR, (rrset,), ttl_s=_FIXED_TTL_S)
    if any(name.is_subdomain(reserved) for reserved in _NEVER_ASKED):
        return Answer(Rcode.NXDOMAIN)
    return None

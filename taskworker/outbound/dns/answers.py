"""Answers about names: records, or the fact that there are none, and how long they are valid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import dns.rrset
from dns.edns import EDECode
from dns.name import Name
from dns.rcode import Rcode
from dns.rdatatype import RdataType
from dns.rrset import RRset

Key = tuple[Name, RdataType]
"""A name and type; names compare case-insensitively."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer for a name and type.

    Attributes:
        rcode: NOERROR, NXDOMAIN, or the reason why there is no answer.
        answer: the records, preceded by the aliases that lead to them.
        authority: the zone's SOA if there are no records (RFC 2308).
        ttl_s: seconds for which the answer is valid after it was made.
        authoritative: whether it is from the pool's own zone.
        trouble: an extended error (RFC 8914) that adds to the rcode.
        text: the text of that error.
        size: approximate bytes in memory.
    """

    rcode: Rcode
    answer: tuple[RRset, ...] = ()
    authority: tuple[RRset, ...] = ()
    ttl_s: int = 0
    authoritative: bool = False
    trouble: EDECode | None = None
    text: str = ""
    size: int = 512

    def aged(self, seconds: int) -> Answer:
        """The same answer some seconds later: with TTLs counted down, but not below zero."""
        if seconds <= 0:
            return self
        return self._with_ttls(lambda ttl: max(0, ttl - seconds))

    def stale(self, ttl_s: int) -> Answer:
        """The same answer, served stale (RFC 8767) with this TTL."""
        told = self._with_ttls(lambda _ttl: ttl_s)
        if self.trouble is not None:
            return told
        return replace(told, trouble=EDECode.STALE_ANSWER, text="the name servers do not answer; this is outdated")

    def records_of(self, kind: RdataType) -> RRset | None:
        """The records of the requested type, if there are any."""
        return next((rrset for rrset in self.answer if rrset.rdtype == kind), None)

    def _with_ttls(self, changed: Callable[[int], int]) -> Answer:
        return replace(
            self,
            answer=tuple(_with_ttl(rrset, changed(rrset.ttl)) for rrset in self.answer),
            authority=tuple(_with_ttl(rrset, changed(rrset.ttl)) for rrset in self.authority),
            ttl_s=changed(self.ttl_s),
        )


@dataclass(frozen=True, slots=True)
class Resolved:
    """An answer to send now, and for how many seconds it stays unchanged."""

    answer: Answer
    holds_s: float


def _with_ttl(rrset: RRset, ttl: int) -> RRset:
    return dns.rrset.from_rdata_list(rrset.name, ttl, list(rrset))


def refusal(rcode: Rcode, trouble: EDECode, text: str, ttl_s: int = 0) -> Answer:
    """An answer without records that says why."""
    return Answer(rcode, ttl_s=ttl_s, trouble=trouble, text=text)

"""What is known about a name: records, or that there are none, with how long that holds."""

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
"""What is asked for; names compare case-insensitively."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known about a name and type.

    Attributes:
        rcode: NOERROR, NXDOMAIN, or why there is no answer.
        answer: the records, after the aliases that lead to them.
        authority: the zone's SOA where there are none (RFC 2308).
        ttl_s: how long all of it holds, from when it was made.
        authoritative: it is of the pool's own zone.
        trouble: an extended error (RFC 8914) that says more than the rcode.
        text: the same for people.
        size: about how many bytes it takes.
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
        """The same, so many seconds later: TTLs counted down, none below zero."""
        if seconds <= 0:
            return self
        return self._with_ttls(lambda ttl: max(0, ttl - seconds))

    def stale(self, ttl_s: int) -> Answer:
        """The same, given out after its time (RFC 8767) with a TTL of its own."""
        told = self._with_ttls(lambda _ttl: ttl_s)
        if self.trouble is not None:
            return told
        return replace(told, trouble=EDECode.STALE_ANSWER, text="the name servers do not answer; this is out of date")

    def records_of(self, kind: RdataType) -> RRset | None:
        """The records of the type asked for, if there are any."""
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
    """An answer as it is to be given out now, and for how many seconds it stays like that."""

    answer: Answer
    holds_s: float


def _with_ttl(rrset: RRset, ttl: int) -> RRset:
    return dns.rrset.from_rdata_list(rrset.name, ttl, list(rrset))


def refusal(rcode: Rcode, trouble: EDECode, text: str, ttl_s: int = 0) -> Answer:
    """No records, and why."""
    return Answer(rcode, ttl_s=ttl_s, trouble=trouble, text=text)

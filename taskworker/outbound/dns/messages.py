"""Converts DNS messages to questions, and answers to replies. Pure; dnspython reads and writes the bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rdata
from dns.edns import EDECode
from dns.message import Message
from dns.name import Name
from dns.rcode import Rcode
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType
from dns.rrset import RRset

from taskworker.outbound.dns.answers import Answer
from taskworker.outbound.dns.upstream import UDP_BYTES

QUERY_BYTES_MAX = 4096
"""Real questions, with all options in use, are far smaller."""
TCP_BYTES = 65_535
_PLAIN_UDP_BYTES = 512
_HEADER = struct.Struct("!6H")
_ADDITIONAL_MAX = 2  # OPT, and a signature
_QR, _OPCODE, _TC, _RD, _RA = 0x8000, 0x7800, 0x0200, 0x0100, 0x0080
_OPT = bytes.fromhex("00 0029") + struct.pack("!H", UDP_BYTES) + bytes(6)
_ANY_TTL_S = 3_600
_META_TYPES = range(128, 256)


@dataclass(frozen=True, slots=True)
class Question:
    """A question.

    Attributes:
        message: the message that has it.
        name: the name asked about.
        kind: the requested type of records.
        size_limit: bytes that the reply may have.
        settled: its answer, if that follows from the question itself.
    """

    message: Message
    name: Name
    kind: RdataType
    size_limit: int
    settled: Answer | None = None

    @property
    def end(self) -> int:
        """The position in the message where the question ends."""
        return _HEADER.size + sum(len(label) + 1 for label in self.name.labels) + 4


def read(wire: bytes, *, over_tcp: bool) -> Question | bytes | None:
    """The question in a message; the reply, if the message is invalid; or None if no reply may be sent."""
    if len(wire) < _HEADER.size:
        return None
    _, flags, questions, answers, authorities, additional = _HEADER.unpack_from(wire)
    if flags & _QR:
        return None  # replying to replies would make loops
    if flags & _OPCODE:
        return _bare(wire, Rcode.NOTIMP)
    if (questions, answers, authorities) != (1, 0, 0) or additional > _ADDITIONAL_MAX or len(wire) > QUERY_BYTES_MAX:
        return _bare(wire, Rcode.FORMERR)
    try:
        message = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError, struct.error):
        return _bare(wire, Rcode.FORMERR)
    return _checked(message, over_tcp)


def _checked(message: Message, over_tcp: bool) -> Question:
    asked = message.question[0]
    limit = _size_limit(message, over_tcp)
    return Question(message, asked.name, asked.rdtype, limit, _settled(message, asked))


def _settled(message: Message, asked: RRset) -> Answer | None:
    if message.edns > 0:
        return Answer(Rcode.BADVERS)
    if asked.rdclass != RdataClass.IN:
        return Answer(Rcode.REFUSED, trouble=EDECode.NOT_SUPPORTED, text="only class IN is served")
    if asked.rdtype == RdataType.ANY:
        return _minimal_any(asked.name)
    if asked.rdtype in _META_TYPES or asked.rdtype in (RdataType.OPT, RdataType.NONE):
        return Answer(Rcode.REFUSED, trouble=EDECode.NOT_SUPPORTED, text="zone transfers and meta types are not served")
    return None


def _size_limit(message: Message, over_tcp: bool) -> int:
    if over_tcp:
        return TCP_BYTES
    return _PLAIN_UDP_BYTES if message.edns < 0 else max(_PLAIN_UDP_BYTES, min(message.payload, UDP_BYTES))


def _minimal_any(name: Name) -> Answer:
    """The minimal answer for ANY by RFC 8482: one synthesized record."""
    rrset = RRset(name, RdataClass.IN, RdataType.HINFO)
    rrset.add(dns.rdata.from_text(RdataClass.IN, RdataType.HINFO, '"RFC8482" ""'), _ANY_TTL_S)
    return Answer(Rcode.NOERROR, (rrset,), ttl_s=_ANY_TTL_S)


def reply(question: Question, answer: Answer) -> bytes:
    """The reply to a question; truncated, with TC set, if it is too long."""
    response = dns.message.make_response(question.message, recursion_available=True, our_payload=UDP_BYTES, pad=0)
    if response.edns >= 0 and answer.trouble is not None:
        told = dns.edns.EDEOption(answer.trouble, answer.text or None)
        response.use_edns(0, 0, UDP_BYTES, options=[told])
    response.set_rcode(answer.rcode)
    if answer.authoritative:
        response.flags |= dns.flags.AA
    response.answer = list(answer.answer)
    response.authority = list(answer.authority)
    try:
        return response.to_wire(max_size=question.size_limit)
    except dns.exception.TooBig:
        response.flags |= dns.flags.TC
        response.answer, response.authority = [], []
        return response.to_wire(max_size=question.size_limit)


def shortened(question: Question, whole: bytes) -> bytes:
    """A reply without records that makes the client retry over TCP; never longer than the question."""
    identity, flags, *_ = _HEADER.unpack_from(whole)
    with_edns = question.message.edns >= 0
    header = _HEADER.pack(identity, flags | _TC, 1, 0, 0, int(with_edns))
    return b"".join((header, whole[_HEADER.size : question.end], _OPT if with_edns else b""))


def failed(wire: bytes) -> bytes:
    """The reply after an unexpected error."""
    return _bare(wire, Rcode.SERVFAIL)


def _bare(wire: bytes, rcode: Rcode) -> bytes:
    identity, flags, *_ = _HEADER.unpack_from(wire)
    return _HEADER.pack(identity, _QR | flags & (_OPCODE | _RD) | _RA | rcode, 0, 0, 0, 0)

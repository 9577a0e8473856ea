"""Decides what is refused: blocked names, and private addresses for outside names.

The latter prevents DNS rebinding, where an attacker's name that resolves to 127.0.0.1 makes a client attack its own
network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import dns.exception
import dns.name
from dns.edns import EDECode
from dns.name import Name
from dns.rcode import Rcode
from dns.rdatatype import RdataType

from storage.errors import InvalidArgument
from taskworker.outbound.addresses import addresses_in, is_public
from taskworker.outbound.dns.answers import Answer, refusal
from taskworker.outbound.dns.text import from_text

_BLOCKED_TTL_S = 60
_HOSTS_FILE_OWN = {"localhost", "localhost.localdomain", "local", "broadcasthost", "ip6-localhost", "ip6-loopback"}


class Suffixes:
    """A set of names, each including all names below it.

    Raises:
        InvalidArgument: one of them is not a name.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        # Kept as bytes: block lists have hundreds of thousands of names, and Name objects are ten times as large.
        self._suffixes = frozenset(b"".join(_labels(parse_suffix(text))) for text in names)

    def __contains__(self, name: Name) -> bool:
        if not self._suffixes:
            return False
        labels = _labels(name)
        return any(b"".join(labels[first:]) in self._suffixes for first in range(len(labels)))


def parse_suffix(text: str) -> Name:
    """Parse a name in an option or a file.

    Raises:
        InvalidArgument: it is not a valid name.
    """
    try:
        name = from_text(text.strip())
    except (dns.exception.DNSException, UnicodeError) as error:
        raise InvalidArgument(f"{text!r} is no domain name: {error}") from None
    if name == dns.name.root:
        raise InvalidArgument(f"{text!r} is no domain name: write it as in example.com")
    return name


def _labels(name: Name) -> list[bytes]:
    """Length-prefixed labels, as a label may contain a dot."""
    return [bytes((len(label),)) + label.lower() for label in name.labels if label]


def read_block_list(path: Path) -> list[str]:
    """Read names from a file: one per line, or in the format of a hosts file; ``#`` starts a comment.

    Raises:
        InvalidArgument: the file cannot be read, or a line is malformed; the text names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the block list {path} cannot be read: {error}") from None
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        listed = words[1:] if len(words) > 1 else words
        try:
            names += (str(parse_suffix(name)) for name in listed if name.lower() not in _HOSTS_FILE_OWN)
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}, line {number}: {error}") from None
    return names


class Policy:
    """Judges names, and the answers for them.

    Args:
        blocked: names to deny, including all names below them.
        private_allowed: names that may resolve to private addresses, including all names below them.

    Raises:
        InvalidArgument: one of them is not a name.
    """

    def __init__(self, blocked: Iterable[str] = (), private_allowed: Iterable[str] = ()) -> None:
        self._blocked = Suffixes(blocked)
        self._private_allowed = Suffixes(private_allowed)

    def refusal_of(self, name: Name) -> Answer | None:
        """The refusal for a name that must not be looked up; None if it may."""
        if name not in self._blocked:
            return None
        text = f"{name.to_text(omit_final_dot=True)} is blocked by this pool's block list"
        return refusal(Rcode.NXDOMAIN, EDECode.BLOCKED, text, _BLOCKED_TTL_S)

    def judged(self, name: Name, found: Answer) -> Answer:
        """The answer for a name, or the refusal that replaces it."""
        for rrset in found.answer:
            blocked = self._alias_refusal(rrset.rdtype, [str(record) for record in rrset])
            if blocked is not None:
                return blocked
        if name in self._private_allowed:
            return found
        private = [one for rrset in found.answer for one in addresses_in(rrset) if not is_public(one)]
        if not private:
            return found
        shown = name.to_text(omit_final_dot=True)
        text = f"{shown} resolves to {private[0]}, which is not public; --dns-allow-private {shown} allows it"
        return refusal(Rcode.REFUSED, EDECode.FILTERED, text, found.ttl_s)

    def _alias_refusal(self, kind: RdataType, targets: list[str]) -> Answer | None:
        """The refusal if an alias leads to a blocked name."""
        if kind not in (RdataType.CNAME, RdataType.DNAME):
            return None
        found = (self.refusal_of(dns.name.from_text(target)) for target in targets)
        return next((one for one in found if one is not None), None)

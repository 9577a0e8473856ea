"""Converts names as people write them to their form in DNS.

Letters beyond ASCII are converted by IDNA 2008 after the non-transitional mapping of UTS 46, as in browsers and egress
rules: ``straße`` is not ``strasse``. ASCII labels are kept as they are, since DNS allows any octets in them.
"""

from __future__ import annotations

import dns.name
import idna
from dns.name import IDNACodec, Name


class _Codec(IDNACodec):
    def encode(self, label: str) -> bytes:
        """Convert a label to octets.

        Raises:
            UnicodeError: it cannot be converted.
        """
        mapped = label if label.isascii() else _mapped(label)
        if mapped.isascii():
            return mapped.encode("ascii")
        for part in filter(None, mapped.split("_")):  # ids in the pool may have underscores, which IDNA does not allow
            idna.check_label(part)
        return b"xn--" + mapped.encode("punycode")


_CODEC = _Codec()  # type: ignore[no-untyped-call]  # the base class has no types


def from_text(text: str) -> Name:
    """Parse a name, which is always taken as absolute; a dot after a backslash is part of a label.

    Raises:
        dns.exception.DNSException, UnicodeError: it is not a valid name.
    """
    if text.isascii():
        return dns.name.from_text(text.encode("ascii"))
    return dns.name.from_text(text, idna_codec=_CODEC)


def below(text: str, origin: Name) -> Name:
    """The name of an id below another name: each part between dots is a label, without escapes.

    Raises:
        dns.exception.DNSException, UnicodeError: the id cannot be a name.
    """
    if not text.isascii():
        text = _mapped(text)  # other characters that IDNA takes as dots count here, too
    return Name([_CODEC.encode(part) for part in text.split(".")] + list(origin.labels))


def _mapped(text: str) -> str:
    return idna.uts46_remap(text, std3_rules=False, transitional=False)

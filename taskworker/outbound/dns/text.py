"""Names as people write them, in the one form that DNS has for each.

Letters beyond ASCII go by IDNA 2008 after the mapping of UTS 46 (not its transitional one), as browsers and the rules
of egress have them: ``straße`` is not ``strasse``. Labels of ASCII stand as they are: DNS allows any octets in them.
"""

from __future__ import annotations

import dns.name
import idna
from dns.name import IDNACodec, Name


class _Codec(IDNACodec):
    def encode(self, label: str) -> bytes:
        """A label between two dots, as octets.

        Raises:
            UnicodeError: it has no such form.
        """
        mapped = label if label.isascii() else _mapped(label)
        if mapped.isascii():
            return mapped.encode("ascii")
        for part in filter(None, mapped.split("_")):  # which the pool's ids may have, and IDNA does not know
            idna.check_label(part)
        return b"xn--" + mapped.encode("punycode")


_CODEC = _Codec()  # type: ignore[no-untyped-call]  # of the base, which has no types


def from_text(text: str) -> Name:
    """The name in a text, always absolute; a dot behind a backslash is part of a label.

    Raises:
        dns.exception.DNSException, UnicodeError: it is none.
    """
    if text.isascii():
        return dns.name.from_text(text.encode("ascii"))
    return dns.name.from_text(text, idna_codec=_CODEC)


def below(text: str, origin: Name) -> Name:
    """The name of an id below another name: each part between dots is a label, and nothing in it is an escape.

    Raises:
        dns.exception.DNSException, UnicodeError: it has none.
    """
    if not text.isascii():
        text = _mapped(text)  # what counts as a dot elsewhere does here
    return Name([_CODEC.encode(part) for part in text.split(".")] + list(origin.labels))


def _mapped(text: str) -> str:
    return idna.uts46_remap(text, std3_rules=False, transitional=False)

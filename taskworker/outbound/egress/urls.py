"""URLs of outside APIs: parsed once, by httpx, and refused if two parsers could disagree about them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import idna

from storage.errors import InvalidArgument
from taskworker.outbound.egress.addresses import Address

if TYPE_CHECKING:  # loaded with the first URL, as loading it takes long
    import httpx

_PORTS = {"http": 80, "https": 443}
_SHAPE = re.compile(r"(https?)://([^/?#]+)(?:[/?#].*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@%]+)(?::([1-9][0-9]{0,4}))?")
# Spaces, control characters, and characters that some parsers take for a slash or a dot.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f-\xa0\\\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]")
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NAME_CHARS_MAX = 253
_PORT_MAX = 65535


@dataclass(frozen=True, slots=True)
class ExternalUrl:
    """An unambiguous URL.

    Attributes:
        url: the URL as sent, without a fragment.
        scheme: ``http`` or ``https``.
        host: a name in its A-form, or an address in its canonical form, without brackets.
        port: the given port, or the scheme's default.
        address: the host, if it is an address.
    """

    url: httpx.URL
    scheme: str
    host: str
    port: int
    address: Address | None

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port; credentials are meant for no other."""
        return self.scheme, self.host, self.port

    @property
    def place(self) -> str:
        """Host and port as a text that reveals neither path nor query."""
        return f"{self.scheme}://{place_of(self.host, self.port)}"

    @property
    def path(self) -> str:
        """The path, percent-encoded."""
        return self.url.raw_path.partition(b"?")[0].decode("ascii")


def place_of(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_url(text: str, chars_max: int = 8192) -> ExternalUrl:
    """Read a URL.

    Raises:
        InvalidArgument: it is not an http or https URL, or it is ambiguous.
    """
    if len(text) > chars_max:
        raise InvalidArgument(f"a URL of {len(text):,} characters: at most {chars_max:,} are taken")
    if _AMBIGUOUS.search(text):
        raise InvalidArgument("the URL has a space, a backslash or a control character: percent-encode it")
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        raise InvalidArgument("the URL is not http://host/... or https://host/...")
    scheme, authority = shape[1].lower(), shape[2]
    if "@" in authority:
        raise InvalidArgument("the URL has a user name or password (or an '@' before its path): send a header instead")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise InvalidArgument("the URL's host or port cannot be parsed: write host or host:port")
    import httpx

    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise InvalidArgument("the URL cannot be read") from None
    port = url.port or _PORTS[scheme]
    if port > _PORT_MAX or (parts[2] is not None and int(parts[2]) != port):
        raise InvalidArgument(f"the URL's port is not from 1 to {_PORT_MAX}")
    host, address = _host(parts[1], url)
    canonical = url.copy_with(host=host, fragment=None)
    return ExternalUrl(canonical, scheme, host, port, address)


def _host(written: str, url: httpx.URL) -> tuple[str, Address | None]:
    """The host in its canonical form, checked against what was written."""
    host = url.raw_host.decode("ascii")
    if written.startswith("["):
        address: Address = ipaddress.IPv6Address(host)
        return str(address), address
    if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", written, re.ASCII):
        address = ipaddress.IPv4Address(host)
        return str(address), address
    if written.isascii() and host != written.lower():
        raise InvalidArgument("the URL's host cannot be parsed")
    return checked_name(host), None


def checked_name(host: str) -> str:
    """A host's name in its A-form.

    Raises:
        InvalidArgument: it is not such a name, or it is an address in disguise.
    """
    if host.endswith("."):
        raise InvalidArgument("the host's name ends in a dot: leave it out")
    labels = host.split(".")
    if len(host) > _NAME_CHARS_MAX or not all(map(_LABEL.fullmatch, labels)):
        raise InvalidArgument("the host's name may only have letters, digits, hyphens and dots")
    if _NUMBER.fullmatch(labels[-1]):
        raise InvalidArgument("the host is a number: write an IPv4 address as four decimal numbers")
    for label in labels:
        if label.startswith("xn--"):
            _check_a_label(label)
    return host


def _check_a_label(label: str) -> None:
    try:
        known = idna.encode(idna.decode(label)).decode("ascii") == label
    except (idna.IDNAError, UnicodeError):
        known = False
    if not known:
        raise InvalidArgument("the host's name has an invalid xn-- label")


def mapped_name(name: str) -> str:
    """Convert a name as a person writes it to its A-form.

    Raises:
        InvalidArgument: it has no A-form.
    """
    try:
        return name.lower() if name.isascii() else idna.encode(name, uts46=True, std3_rules=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise InvalidArgument(f"{name!r} is not a host's name") from None

"""Outgoing requests: checks them, fills in secrets, and rewrites them after redirects."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import urljoin

from storage.errors import InvalidArgument, PermissionDenied
from taskworker.calls.capabilities import ApiRequest
from taskworker.errors import ApiUnreachable
from taskworker.outbound.egress.bodies import ACCEPTED
from taskworker.outbound.egress.filling import Filling, has_place
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.outbound.egress.urls import ExternalUrl, parse_url

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NOT_SETTABLE = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_CREDENTIALS = re.compile(r"auth|cookie|token|secret|session|credential|passw|key|signature")
_OF_A_BODY = frozenset({"content-type", "content-encoding", "content-language", "content-location"})


@dataclass(frozen=True, slots=True)
class Header:
    """A header to send; ``filled``: it contains a secret."""

    name: str
    value: str
    filled: bool = False

    @property
    def is_credential(self) -> bool:
        """Whether it may be meant only for the host that the function named."""
        return self.filled or bool(_CREDENTIALS.search(self.name.lower()))


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request to one host, ready to be sent.

    Attributes:
        url: the URL, with any secrets in its query filled in.
        shown: the URL without secrets, for texts.
        body_filled: whether the body contains a secret.
    """

    method: str
    url: ExternalUrl
    shown: str
    headers: tuple[Header, ...]
    body: bytes
    body_filled: bool

    @property
    def credentials(self) -> list[str]:
        """Names and values of the headers that identify the user to the host."""
        own = [(header.name.lower(), header.value) for header in self.headers if header.is_credential]
        return [text for pair in own for text in pair]

    def sent_headers(self) -> list[tuple[bytes, bytes]]:
        """All headers except those that the transport sets."""
        names = {header.name.lower() for header in self.headers}
        own = [] if "user-agent" in names else [("User-Agent", "taskworker")]
        own += [] if "accept" in names else [("Accept", "*/*")]
        pairs = [*own, ("Accept-Encoding", ACCEPTED), *((header.name, header.value) for header in self.headers)]
        return [(name.encode("ascii"), value.encode("latin-1")) for name, value in pairs]


def prepare(request: ApiRequest, url: ExternalUrl, filling: Filling, limits: EgressLimits) -> Outgoing:
    """Prepare the request that a function asks for.

    Raises:
        InvalidArgument: it cannot be sent; the text says why.
        PermissionDenied: the function may not use a secret in it.
    """
    if request.method not in METHODS:
        raise InvalidArgument(f"no method {request.method[:20]!r}; use one of {', '.join(sorted(METHODS))}")
    if has_place([url.path]):
        raise InvalidArgument("a secret may be in a URL's query, a header's value or the body, not in the URL's path")
    _check_headers(request.headers, limits)
    headers = tuple(_header(name, value, filling) for name, value in request.headers if _is_kept(name))
    content_type = next((header.value for header in headers if header.name.lower() == "content-type"), "")
    body = filling.body(request.body, content_type)
    if len(body) > limits.request_bytes:
        raise InvalidArgument(f"a request body of {len(body):,} bytes: at most {limits.request_bytes:,} are sent")
    query = url.url.query.decode("ascii")
    filled = filling.query(query)
    if filled != query:
        url = replace(url, url=url.url.copy_with(query=filled.encode("ascii")))
    return Outgoing(request.method, url, request.url, headers, body, body != request.body)


def _check_headers(headers: tuple[tuple[str, str], ...], limits: EgressLimits) -> None:
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > limits.request_headers or size > limits.request_header_bytes:
        raise InvalidArgument(
            f"{len(headers)} headers of {size:,} characters: at most {limits.request_headers} and "
            f"{limits.request_header_bytes:,} are sent"
        )
    for name, value in headers:
        if not _NAME.fullmatch(name):
            raise InvalidArgument(f"{name[:40]!r} is not a header name")
        if name.lower() in _NOT_SETTABLE:
            raise InvalidArgument(f"header {name} is set by the pool: leave it out")
        if has_place([name]):
            raise InvalidArgument("a secret may be in a header's value, not in its name")
        _check_value(name, value)


def _check_value(name: str, value: str) -> None:
    if not _VALUE.fullmatch(value):
        raise InvalidArgument(f"header {name}: its value has a line break, a control or a character beyond Latin-1")


def _header(name: str, value: str, filling: Filling) -> Header:
    filled = filling.header(value)
    _check_value(name, filled)
    return Header(name, filled, filled != value)


def _is_kept(name: str) -> bool:
    """Whether a function's header is sent; the pool itself says which encodings it can decode."""
    return name.lower() != "accept-encoding"


def redirected(before: Outgoing, status: int, location: str, filling: Filling, chars_max: int) -> Outgoing:
    """The request that follows a redirect; credentials are dropped if the host changes.

    Raises:
        ApiUnreachable: the redirect has no valid target.
        PermissionDenied: it would send a secret to another host.
    """
    place = before.url.place
    try:
        url = parse_url(urljoin(str(before.url.url), location.strip()), chars_max)
    except (InvalidArgument, ValueError) as error:
        raise ApiUnreachable(f"{place} redirects to a URL that is not followed: {error}") from None
    method, headers, body = before.method, before.headers, before.body
    if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
        method, body = "GET", b""
        headers = tuple(header for header in headers if header.name.lower() not in _OF_A_BODY)
    if url.origin != before.url.origin:
        if filling.is_in(str(url.url)):
            raise PermissionDenied(f"{place} redirects to another host, which must not get the secret in the URL")
        if body and before.body_filled:
            raise PermissionDenied(f"{place} redirects to {url.place}, which must not get the secret in the body")
        headers = tuple(header for header in headers if not header.is_credential)
    return Outgoing(method, url, filling.hide(str(url.url)), headers, body, before.body_filled and bool(body))

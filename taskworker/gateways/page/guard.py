"""What holds for every request and every reply, whatever it is about: hosts, origins, headers, and bounds."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.errors import InvalidArgument

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""Nothing inline, nothing from elsewhere, nothing in a frame."""
FILE_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"
"""Of users' files: if a browser showed one in spite of everything, it would have no origin and no scripts."""
_HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers name no origin when they send forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
    "vary": "Accept, Cookie",
}
_SAFE = frozenset(("GET", "HEAD"))
_FORM_BYTES_MAX = 256 * 1024
_FORM_S = 30.0


class Guard:
    """Refuses requests that a browser would not make of this page's own accord, and adds headers to all replies.

    Pages of other sites can make a browser ask this server for something: by a name that they resolve to its address
    (so only names that it is known by are served), or by its own name (so only what comes from its own pages changes
    anything).

    Args:
        app: what is guarded.
        names: host names that the page is known by. Addresses, and ``localhost``, need not be among them, as nobody can
            make them resolve to something else.
        is_secure: whether it is served by TLS.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str], *, is_secure: bool) -> None:
        self._app = app
        self._names = frozenset(name.lower().rstrip(".") for name in names) | {"localhost"}
        self._is_secure = is_secure
        self._schemes = ("https",) if is_secure else ("http", "https")  # a proxy before it may serve it by TLS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the page is not served over {scope['type']}")

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self._is_secure:
                    headers["strict-transport-security"] = "max-age=31536000"
            await send(message)

        problem = self._problem(scope["method"], Headers(scope=scope))
        if problem is not None:
            await problem(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _problem(self, method: str, headers: Headers) -> PlainTextResponse | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.is_own(hosts[0]):
            text = "This page is not known by that name. Start it with --name NAME to let browsers use it.\n"
            return PlainTextResponse(text, 421)
        if method not in _SAFE and not _is_from(headers, hosts[0], self._schemes):
            return PlainTextResponse("This request comes from a page of another site, and is refused.\n", 403)
        return None

    def is_own(self, host: str) -> bool:
        """Whether the page is known by what a ``Host`` header says."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        name = name.rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def _is_from(headers: Headers, host: str, schemes: Iterable[str]) -> bool:
    """Whether a request comes from the page itself, or from no page at all."""
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in {f"{scheme}://{host}".lower() for scheme in schemes}:
        return False
    return headers.get("sec-fetch-site", "none") in ("same-origin", "none")


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        InvalidArgument: the body is no form, too long, or does not come in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise InvalidArgument("send a form")
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_FORM_S):
            async for piece in request.stream():
                size += len(piece)
                if size > _FORM_BYTES_MAX:
                    raise InvalidArgument(
                        f"what is sent has at most {_FORM_BYTES_MAX:,} bytes; use the command line for more"
                    )
                pieces.append(piece)
    except TimeoutError:
        raise InvalidArgument(f"the form did not come within {_FORM_S:.0f} s; send it again") from None
    try:
        text = b"".join(pieces).decode()
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=64))
    except ValueError:
        raise InvalidArgument("the form is malformed") from None


def file_headers(filename: str, size: int) -> dict[str, str]:
    """The headers of a user's file, which no browser shows in the place of a page."""
    last = filename.rstrip("/").rpartition("/")[2] or "file"
    plain = "".join(one if one.isascii() and (one.isalnum() or one in "._-") else "_" for one in last)
    return {
        "content-type": "application/octet-stream",
        "content-length": str(size),
        "content-disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(last, safe='')}",
        "content-security-policy": FILE_POLICY,
    }

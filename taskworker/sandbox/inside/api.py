"""Calls of outside APIs from a function: the pool makes the requests; responses resemble those of ``requests``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

BODY_BYTES_MAX = 1 << 20

_SECRET = re.compile(r"(\{\{secret:[A-Za-z0-9_.\-]{1,128}\}\})")

_CHARSET = re.compile(r""";\s*charset\s*=\s*["']?([A-Za-z0-9._:+-]+)""", re.IGNORECASE)

Pairs = Mapping[str, Any] | Iterable[tuple[str, Any]]


class Connection(Protocol):
    """A connection to the worker that runs the call."""

    def ask(self, operation: str, data: bytes | memoryview = b"", **header: object) -> tuple[dict[str, Any], bytes]:
        """Ask the worker; return the answer's header and its bytes."""


class HTTPStatusError(Exception):
    """The status of a response is 400 or above.

    Attributes:
        response: the response.
    """

    def __init__(self, response: Response) -> None:
        kind = "the request was at fault" if response.status_code < 500 else "the server failed"
        super().__init__(f"{response.url} answered {response.status_code}: {kind}")
        self.response = response


class Headers(Mapping[str, str]):
    """Headers by case-insensitive name. Values of headers with the same name are joined with commas."""

    def __init__(self, pairs: Iterable[Sequence[str]]) -> None:
        self._pairs = [(name, value) for name, value in pairs]
        self._values: dict[str, tuple[str, str]] = {}
        for name, value in self._pairs:
            first, before = self._values.get(name.lower(), (name, None))
            self._values[name.lower()] = (first, value if before is None else f"{before}, {value}")

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._values.values())

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __repr__(self) -> str:
        return f"Headers({self._pairs!r})"

    def get_list(self, name: str) -> list[str]:
        """Return the values of all headers with this name, for instance Set-Cookie."""
        return [value for one, value in self._pairs if one.lower() == name.lower()]


class Response:
    """The response of an outside API.

    Attributes:
        status_code: HTTP status; also ``status``.
        headers: headers by case-insensitive name.
        content: the body, after undoing its content encoding.
        url: final URL, after redirects.
        from_cache: whether the response comes from the pool's cache.
        encoding: text encoding for ``text``; may be set.
    """

    def __init__(
        self, status: int, headers: Iterable[Sequence[str]], content: bytes, url: str, from_cache: bool
    ) -> None:
        self.status_code = status
        self.headers = Headers(headers)
        self.content = content
        self.url = url
        self.from_cache = from_cache
        self.encoding = _charset(self.headers.get("content-type", ""))

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.status_code

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status_code < 400

    @property
    def text(self) -> str:
        """The body as a text; bytes that are invalid in its encoding become U+FFFD."""
        return self.content.decode(self.encoding, "replace")

    def json(self, **options: Any) -> Any:
        """Decode the body as JSON; ``options`` are those of ``json.loads``.

        Raises:
            ValueError: the body is not JSON.
        """
        return json.loads(self.content, **options)

    def raise_for_status(self) -> Response:
        """Return this response, unless its status reports an error.

        Raises:
            HTTPStatusError: the status is 400 or above.
        """
        if not self.ok:
            raise HTTPStatusError(self)
        return self

    def __repr__(self) -> str:
        return f"<Response [{self.status_code}]>"


def call_external_api(
    connection: Connection,
    url: str,
    method: str,
    *,
    headers: Pairs | None,
    params: Pairs | str | None,
    json_value: Any,
    data: bytes | str | Pairs | None,
    timeout: float | None,
    cache: bool,
    follow_redirects: bool,
) -> Response:
    """Have the pool make a request; see ``FunctionWorker.call_external_api``."""
    body, kind = _body(json_value, data)
    if len(body) > BODY_BYTES_MAX:
        raise ValueError(f"a request body of {len(body):,} bytes: at most {BODY_BYTES_MAX:,} are sent")
    sent = [(str(name), _header(value)) for name, value in _pairs(headers)]
    if kind is not None and not any(name.lower() == "content-type" for name, _ in sent):
        sent.append(("Content-Type", kind))
    told, content = connection.ask(
        "http",
        body,
        method=method.upper(),
        url=_with_params(str(url), params),
        headers=sent,
        timeout_s=None if timeout is None else float(timeout),
        cache=cache,
        follow_redirects=follow_redirects,
    )
    return Response(told["status"], told["headers"], content, told["url"], from_cache=told["from_cache"])


def _body(json_value: Any, data: bytes | str | Pairs | None) -> tuple[bytes, str | None]:
    if json_value is not None and data is not None:
        raise ValueError("give json or data, not both")
    if json_value is not None:
        return json.dumps(json_value, allow_nan=False).encode(), "application/json"
    if data is None:
        return b"", None
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), None
    if isinstance(data, str):
        return data.encode(), None
    return _encoded(data).encode(), "application/x-www-form-urlencoded"


def _with_params(url: str, params: Pairs | str | None) -> str:
    query = params if isinstance(params, str) else _encoded(params)
    if not query:
        return url
    before, mark, fragment = url.partition("#")
    return f"{before}{'&' if '?' in before else '?'}{query}{mark}{fragment}"


def _encoded(pairs: Pairs | None) -> str:
    """Encode names and values as in a form. Placeholders of secrets stay as they are; a list gives several values."""
    found = []
    for name, value in _pairs(pairs):
        values = value if isinstance(value, list | tuple) else [value]
        found += [f"{_quoted(name)}={_quoted(one)}" for one in values if one is not None]
    return "&".join(found)


def _pairs(pairs: Pairs | None) -> Iterable[tuple[str, Any]]:
    if pairs is None:
        return ()
    return pairs.items() if isinstance(pairs, Mapping) else pairs


def _quoted(value: Any) -> str:
    from urllib.parse import quote_plus  # loads much, and few functions call outside APIs

    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, bytes):
        return quote_plus(value)
    return "".join(part if _SECRET.fullmatch(part) else quote_plus(part) for part in _SECRET.split(str(value)))


def _header(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _charset(content_type: str) -> str:
    # The standard library's parser for such headers would import sockets into every sandbox.
    found = _CHARSET.search(content_type)
    name = found[1] if found else "utf-8"
    try:
        "".encode(name)
    except (LookupError, ValueError):
        return "utf-8"
    return name

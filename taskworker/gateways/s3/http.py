"""The head of an HTTP request as it came, before anybody has interpreted it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import unquote_plus, unquote_to_bytes

from taskworker.gateways.s3.errors import S3Error

_PARAMETERS_MAX = 200
"""Parameters of a query; no operation has more than about 30."""


@dataclass(frozen=True)
class Head:
    """Method, target and headers of a request.

    Attributes:
        method: in capitals.
        path: as it was sent, percent-encoded.
        query: as it was sent, without the question mark.
        headers: names in lower case, in the order in which they came.
        version: of HTTP.
    """

    method: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=())
    version: str = "1.1"

    @cached_property
    def fields(self) -> dict[str, str]:
        """The headers by name; those that came several times are joined by commas."""
        joined: dict[str, str] = {}
        for name, value in self.headers:
            joined[name] = f"{joined[name]},{value}" if name in joined else value
        return joined

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The query's parameters, decoded; of those that are given twice, the first.

        Raises:
            S3Error: there are too many, or they are not UTF-8.
        """
        found: dict[str, str] = {}
        for name, value in self.pairs():
            found.setdefault(name, value)
        return found

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The query's parameters in their order, decoded."""
        pieces = [piece for piece in self.query.split("&") if piece]
        if len(pieces) > _PARAMETERS_MAX:
            raise S3Error("InvalidURI", f"the query has {len(pieces)} parameters, at most {_PARAMETERS_MAX} are taken")
        for piece in pieces:
            name, _, value = piece.partition("=")
            yield _decoded(name), _decoded(value)

    @cached_property
    def decoded_path(self) -> str:
        """The path, decoded once.

        Raises:
            S3Error: it is not UTF-8, or has a NUL.
        """
        try:
            decoded = unquote_to_bytes(self.path).decode()
        except UnicodeDecodeError:
            raise S3Error("InvalidURI", "the path is not UTF-8; encode keys as UTF-8 before percent-encoding") from None
        if "\0" in decoded:
            raise S3Error("InvalidURI", "the path has a NUL character, which no key may have")
        return decoded


def _decoded(text: str) -> str:
    try:
        return unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "the query is not UTF-8; encode it as UTF-8 before percent-encoding") from None

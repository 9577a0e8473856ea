"""Fills in secrets for ``{{secret:NAME}}``, escaped as their place in the request requires."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from storage.errors import InvalidArgument, PermissionDenied

Fill = Callable[[str, str, str], str]
"""(function, host, text with ``{{secret:NAME}}``) → the text with the value in its place; raises PermissionDenied."""

_PLACES_MAX = 16
_HIDDEN_CHARS_MIN = 4
"""Shorter values occur in many texts by chance."""
_PLACE = re.compile(r"\{\{secret:([A-Za-z0-9_.\-]{1,128})\}\}")
# As in URLs and forms, partly or fully percent-encoded.
_ENCODED = re.compile(r"(?:\{|%7B){2}secret(?::|%3A)([A-Za-z0-9_.\-]{1,128})(?:\}|%7D){2}", re.IGNORECASE)


def no_secrets(_function: str, _host: str, _text: str) -> str:
    """A ``Fill`` without any secrets."""
    raise PermissionDenied("this pool has no secrets, so {{secret:NAME}} cannot be filled in")


class Filling:
    """Fills in the secrets of one request, and hides them in the response.

    Args:
        fill: fills in the values.
        function: the function that makes the request.
        host: the host that it is for.
    """

    def __init__(self, fill: Fill, function: str, host: str) -> None:
        self._fill = fill
        self._function = function
        self._host = host
        self._values: dict[str, str] = {}

    def query(self, query: str) -> str:
        """Fill in secrets in a URL's query."""
        return self._filled(_ENCODED, query, lambda value: quote(value, safe=""))

    def header(self, value: str) -> str:
        """Fill in secrets in a header's value."""
        return self._filled(_PLACE, value, lambda secret: secret)

    def body(self, body: bytes, content_type: str) -> bytes:
        """Fill in secrets in a body; for JSON and forms by Content-Type, values are quoted accordingly."""
        kind = content_type.partition(";")[0].strip().lower()
        text = body.decode("latin-1")  # one character for each byte
        if kind == "application/x-www-form-urlencoded":
            filled = self._filled(_ENCODED, text, quote_plus)
        elif kind == "application/json" or kind.endswith("+json"):
            filled = self._filled(_PLACE, text, lambda secret: _latin1(json.dumps(secret)[1:-1]))
        else:
            filled = self._filled(_PLACE, text, _latin1)
        return filled.encode("latin-1")

    def hide(self, text: str) -> str:
        """Replace filled-in values with their names in a text of the response's header."""
        for name, value in sorted(self._values.items(), key=lambda pair: -len(pair[1])):
            if len(value) >= _HIDDEN_CHARS_MIN:
                for form in dict.fromkeys((value, quote(value, safe=""), quote_plus(value), quote(value))):
                    text = text.replace(form, f"{{{{secret:{name}}}}}")
        return text

    def is_in(self, url: str) -> bool:
        """Whether a URL contains a filled-in value, in any percent-encoding; in hosts, also in lower case."""
        forms = [form.lower() for form in (url, unquote(url), unquote_plus(url))]
        values = [value.lower() for value in self._values.values() if len(value) >= _HIDDEN_CHARS_MIN]
        return any(value in form for value in values for form in forms)

    def _filled(self, places: re.Pattern[str], text: str, write: Callable[[str], str]) -> str:
        return places.sub(lambda place: write(self._value(place[1])), text)

    def _value(self, name: str) -> str:
        if name not in self._values:
            if len(self._values) >= _PLACES_MAX:
                raise InvalidArgument(f"a request may hold {_PLACES_MAX} different secrets at most")
            self._values[name] = self._fill(self._function, self._host, f"{{{{secret:{name}}}}}")
        return self._values[name]


def has_place(texts: Iterable[str]) -> bool:
    """Whether one of the texts contains ``{{secret:NAME}}``."""
    return any(_ENCODED.search(text) for text in texts)


def _latin1(text: str) -> str:
    return text.encode().decode("latin-1")

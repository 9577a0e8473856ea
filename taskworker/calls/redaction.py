"""Redacts the secrets that a call was given from its output and its errors.

This guards against accidents: a key in a traceback, a header that was logged. Code that has a secret can always print
it in a form that is not recognised.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import quote, quote_plus

from storage.errors import StorageError
from taskworker.calls.call import Call, CallReport
from taskworker.calls.capabilities import ApiRequest, ApiResponse, Capabilities

MARK = "***"
_ENCODED_BYTES_MIN = 4  # shorter values have encoded forms that occur everywhere
_EMBEDDED_CHARS_MIN = 6
_LINE_CHARS_MIN = 8
_FEW = 256
"""Up to this many forms are each replaced in a pass of their own; a pass over a MiB takes a millisecond."""
_KEY_CHARS = 4


class Redactor:
    """Replaces known values, and their usual encodings, with ``***``. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: set[str] = set()
        self._forms: tuple[str, ...] = ()
        self._many: _ManyForms | None = None

    def add(self, value: str) -> None:
        """Add a value to redact."""
        with self._lock:
            if value in self._values:
                return
            self._values.add(value)
            # The longest first: if a shorter value were replaced in the middle of a longer one, the rest of the longer
            # one would not be recognised.
            self._forms = tuple(sorted({*self._forms, *_forms(value)}, key=lambda form: (-len(form), form)))
            self._many = None

    def text(self, text: str) -> str:
        """Redact a text."""
        forms = self._forms
        if len(forms) > _FEW:
            return self._of_many().hidden_in(text)
        for form in forms:
            text = text.replace(form, MARK)
        return text

    def _of_many(self) -> _ManyForms:
        with self._lock:
            if self._many is None:  # built as late as possible, since every added value changes it
                self._many = _ManyForms(self._forms)
            return self._many

    def texts(self, texts: list[str]) -> list[str]:
        """Redact several lines: joined, in one pass for each value, as there may be many of both."""
        if not self._forms:
            return texts
        redacted = self.text("\n".join(texts)).split("\n")
        # A value of several lines may have been replaced across lines, but the number of lines must stay the same.
        return redacted if len(redacted) == len(texts) else [self.text(text) for text in texts]

    def error(self, error: StorageError) -> None:
        """Redact the text of an error."""
        if self._forms:
            error.args = tuple(self.text(one) if isinstance(one, str) else one for one in error.args)

    def report(self, report: CallReport) -> None:
        """Redact the outcome of a call, except its result, which belongs to the caller."""
        if not self._forms:
            return
        texts = self.texts([line.text for line in report.output])
        report.output = [replace(line, text=text) for line, text in zip(report.output, texts, strict=True)]
        if report.error is not None:
            self.error(report.error)


class _ManyForms:
    """Finds many texts in another text in one pass: a value of 300 lines has 4,000 forms.

    A form is looked up by its first characters, then by its length; at most positions, one lookup is enough.

    Args:
        forms: the texts to find.
    """

    def __init__(self, forms: Collection[str]) -> None:
        self._short = [form for form in forms if len(form) < _KEY_CHARS]
        self._forms = frozenset(form for form in forms if len(form) >= _KEY_CHARS)
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for form in self._forms:
            lengths[form[:_KEY_CHARS]].add(len(form))
        self._lengths = {key: sorted(found, reverse=True) for key, found in lengths.items()}

    def hidden_in(self, text: str) -> str:
        """Replace every form in a text with `MARK`; overlapping ones become one mark."""
        parts: list[str] = []
        kept_to = 0
        for begin, end in self._found_in(text):
            parts += (text[kept_to:begin], MARK)
            kept_to = end
        hidden = "".join((*parts, text[kept_to:]))
        for form in self._short:
            hidden = hidden.replace(form, MARK)
        return hidden

    def _found_in(self, text: str) -> Iterator[tuple[int, int]]:
        forms, lengths_of = self._forms, self._lengths.get
        begin = end = 0
        for at in range(len(text) - _KEY_CHARS + 1):
            for length in lengths_of(text[at : at + _KEY_CHARS], ()):
                if text[at : at + length] in forms:
                    if at >= end:
                        if end:
                            yield begin, end
                        begin = at
                    end = max(end, at + length)
                    break
        if end:
            yield begin, end


def _forms(value: str) -> set[str]:
    lines = [line.strip() for line in value.splitlines()]
    pieces = {value, *(line for line in lines if len(line) >= _LINE_CHARS_MIN)}
    return {form for piece in pieces for form in _forms_of_piece(piece) if form}


def _forms_of_piece(piece: str) -> Iterator[str]:
    yield piece
    raw = piece.encode("utf-8", "surrogatepass")
    if len(raw) < _ENCODED_BYTES_MIN:
        return
    yield from (raw.hex(), raw.hex().upper())
    yield from (
        json.dumps(piece)[1:-1],
        json.dumps(piece, ensure_ascii=False)[1:-1],
        repr(piece)[1:-1],
        repr(raw)[2:-1],
    )
    for quoted in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        yield from (quoted, _lower_escapes(quoted))
    for encoded in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encoded(raw).decode()
        yield from (whole, whole.rstrip("="))
        yield from _embedded(raw, encoded(b"\0" + raw).decode(), 1)
        yield from _embedded(raw, encoded(b"\0\0" + raw).decode(), 2)
        yield from _embedded(raw, whole, 0)


def _embedded(raw: bytes, encoded: str, before: int) -> Iterator[str]:
    """The base64 characters that depend on ``raw`` alone if ``before`` other bytes come before it."""
    first = -(-before * 8 // 6)
    form = encoded[first : (before + len(raw)) * 8 // 6]
    if len(form) >= _EMBEDDED_CHARS_MIN:
        yield form


def _lower_escapes(quoted: str) -> str:
    parts = quoted.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])


class RedactedCapabilities:
    """A call's ``Capabilities`` that add each secret they give to a redactor."""

    def __init__(self, outside: Capabilities, redactor: Redactor) -> None:
        self._capabilities = outside
        self._redactor = redactor

    def secret(self, name: str) -> str:
        """See ``Capabilities``."""
        value = self._capabilities.secret(name)
        self._redactor.add(value)
        return value

    def request(self, request: ApiRequest) -> ApiResponse:
        """See ``Capabilities``."""
        return self._capabilities.request(request)

    def resolve(self, name: str, kind: str) -> list[str]:
        """See ``Capabilities``."""
        return self._capabilities.resolve(name, kind)


@dataclass(slots=True)
class _Shared:
    redactor: Redactor = field(default_factory=Redactor)
    functions: Counter[str] = field(default_factory=Counter)


class CallRedactors:
    """The redactors of running calls, by call id. Nested calls share the id of the outer call, and so its secrets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: dict[str, _Shared] = {}

    @contextlib.contextmanager
    def during(self, call: Call) -> Iterator[Redactor]:
        """The redactor of a call, within this context; errors that leave it are redacted."""
        with self._lock:
            shared = self._shared.setdefault(call.call_id, _Shared())
            shared.functions[call.function] += 1
        try:
            yield shared.redactor
        except StorageError as error:
            shared.redactor.error(error)
            raise
        finally:
            with self._lock:
                shared.functions[call.function] -= 1
                if not shared.functions.total():
                    del self._shared[call.call_id]

    def given(self, call: Call, value: str) -> None:
        """Note that a call was given a secret."""
        with self._lock:
            shared = self._shared.get(call.call_id)
        if shared is not None:
            shared.redactor.add(value)

    def given_to(self, function: str, value: str) -> None:
        """Note that some call of a function was given a secret, without knowing which call."""
        with self._lock:
            concerned = [shared.redactor for shared in self._shared.values() if shared.functions[function]]
        for redactor in concerned:
            redactor.add(value)

"""Rules on which hosts each function may call; by default none."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

import msgspec

from storage.errors import FormatError, InvalidArgument, PermissionDenied
from taskworker.auth.documents import Documents
from taskworker.outbound.egress.urls import ExternalUrl, mapped_name, parse_url, place_of

_DOCUMENT = "egress-rules"
_RULES_MAX = 256
_FUNCTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"[a-z0-9._:-]+")
_WRITTEN = re.compile(r"(?:(https?)://)?(\*\.)?(\[[^\]]*\]|[^/:?#@\[\]]+)(:[^/?#]*)?(/[^?#]*)?", re.IGNORECASE)
# Path segments below a prefix that a server could take as leading out of it.
_STEP = re.compile(r"(^|/)(\.|%2e){1,2}(/|;|$)|%2f|%5c|%25|//", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rule:
    """Hosts that a function may call.

    Attributes:
        host: a name in its A-form, or an address; with ``subdomains``, all names below it but not itself.
        subdomains: whether the rule is for ``*.host``.
        port: None: the scheme's default.
        prefix: whole segments at the start of the path; "/": any path.
        private: whether the host may be on loopback or in a private network.
        scheme: None: http or https.
    """

    host: str
    subdomains: bool = False
    port: int | None = None
    prefix: str = "/"
    private: bool = False
    scheme: str | None = None

    @property
    def text(self) -> str:
        """The rule as text."""
        scheme = f"{self.scheme}://" if self.scheme else ""
        host = f"*.{self.host}" if self.subdomains else self.host
        place = place_of(host, self.port) if self.port is not None else (f"[{host}]" if ":" in host else host)
        return f"{scheme}{place}{self.prefix if self.prefix != '/' else ''}"

    def allows(self, url: ExternalUrl) -> bool:
        """Whether the rule allows a URL."""
        if self.scheme not in (None, url.scheme) or url.port != (self.port or _default_port(url)):
            return False
        if (self.subdomains and url.address is not None) or not self.stands_for(url.host):
            return False
        return self._allows_path(url.path)

    def stands_for(self, host: str) -> bool:
        """Whether the rule is for this host, a name in its A-form or an address."""
        return host.endswith(f".{self.host}") if self.subdomains else host == self.host

    def _allows_path(self, path: str) -> bool:
        if self.prefix == "/":
            return True
        below = self.prefix if self.prefix.endswith("/") else f"{self.prefix}/"
        return (path == self.prefix or path.startswith(below)) and not _STEP.search(path)


_rules = msgspec.msgpack.Decoder(dict[str, tuple[Rule, ...]])


def _default_port(url: ExternalUrl) -> int:
    return 443 if url.scheme == "https" else 80


def parse_rule(text: str, *, private: bool = False) -> Rule:
    """Read ``[http://|https://][*.]host[:port][/prefix]``.

    Raises:
        InvalidArgument: it is not one.
    """
    written = _WRITTEN.fullmatch(text.strip())
    if written is None:
        raise InvalidArgument(
            f"{text!r} is not a rule: write api.example.com, api.example.com:8443/v1 or *.example.com"
        )
    scheme, wildcard, host, port, prefix = written.groups()
    host = host if host.startswith("[") else mapped_name(host)
    try:
        url = parse_url(f"{scheme or 'https'}://{host}{port or ''}{prefix or '/'}")
    except InvalidArgument as error:
        raise InvalidArgument(f"{text!r} is not a rule: {error}") from None
    if wildcard and (url.address is not None or "." not in url.host):
        raise InvalidArgument(f"{text!r} is not a rule: after '*.' there must be a name with a dot in it")
    if prefix and _STEP.search(prefix):
        raise InvalidArgument(f"{text!r} is not a rule: its path must not have dot segments, %25, %2F, %5C or //")
    return Rule(
        host=url.host,
        subdomains=bool(wildcard),
        port=url.port if port else None,
        prefix=url.path,
        private=private,
        scheme=scheme.lower() if scheme else None,
    )


class RuleBook:
    """The rules of all functions, stored as a document. Thread-safe.

    Args:
        documents: where they are stored.

    Raises:
        FormatError: the stored rules cannot be read.
    """

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._lock = threading.Lock()
        raw = documents.document(_DOCUMENT)
        try:
            self._rules = {} if raw is None else _rules.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FormatError(f"the pool's egress rules are damaged ({error}); restore the catalog") from error

    def allow(self, function: str, rule: Rule) -> bool:
        """Add a rule, replacing one that differs only in ``private``; False if it exists already.

        Raises:
            InvalidArgument: the function's name is invalid, or it has too many rules.
        """
        if not _FUNCTION.fullmatch(function):
            raise InvalidArgument(f"{function!r} is not a function's name")
        with self._lock:
            had = self._rules.get(function, ())
            if rule in had:
                return False
            kept = [one for one in had if one.text != rule.text]
            if len(kept) >= _RULES_MAX:
                raise InvalidArgument(f"{function} has {_RULES_MAX} rules, as many as a function may have")
            self._save(function, (*kept, rule))
        return True

    def deny(self, function: str, rule: Rule | None = None) -> list[Rule]:
        """Remove a rule, or all rules of a function; returns the removed ones."""
        with self._lock:
            had = self._rules.get(function, ())
            gone = [one for one in had if rule is None or one.text == rule.text]
            if gone:
                self._save(function, tuple(one for one in had if one not in gone))
        return gone

    def all(self) -> list[tuple[str, Rule]]:
        """All rules, by function."""
        with self._lock:
            return [(function, rule) for function in sorted(self._rules) for rule in self._rules[function]]

    def require(self, function: str, url: ExternalUrl) -> Rule:
        """The rule that allows a function to call a URL, preferably one with ``private``.

        Raises:
            PermissionDenied: no rule allows it.
        """
        with self._lock:
            rules = self._rules.get(function, ())
        found = [rule for rule in rules if rule.allows(url)]
        if not found:
            raise PermissionDenied(
                f"function {function} may not call {url.place} (or not this path of it); an operator allows it with "
                f"`taskworker egress allow {function} {place_of(url.host, url.port)}`"
            )
        return next((rule for rule in found if rule.private), found[0])

    def allows_host(self, function: str, host: str) -> bool:
        """Whether a function may call a host, a name in its A-form, at any URL; then it may also resolve the name.

        DNS names whose labels have characters that host names cannot have are refused: a dot in one would look like two
        labels.
        """
        if not _HOST.fullmatch(host):
            return False
        with self._lock:
            rules = self._rules.get(function, ())
        return any(rule.stands_for(host) for rule in rules)

    def _save(self, function: str, rules: tuple[Rule, ...]) -> None:
        changed = {name: kept for name, kept in self._rules.items() if name != function}
        if rules:
            changed[function] = rules
        self._documents.save_document(_DOCUMENT, msgspec.msgpack.encode(changed))
        self._rules = changed

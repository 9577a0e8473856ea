"""Valid names of secrets, and patterns of hosts that they are bound to."""

from __future__ import annotations

import re

from storage.errors import InvalidArgument

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*|[0-9a-f:]*:[0-9a-f:.]*")
_HOST_CHARS_MAX = 253


def check_name(name: str) -> str:
    """Return ``name`` if it is a valid name of a secret.

    Raises:
        InvalidArgument: it is not.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"secret name {name[:80]!r}: use 1 to 64 letters, digits, '_', '.' or '-', the first a letter, digit or '_'"
        )
    return name


def host_pattern(text: str) -> str:
    """Normalize a pattern of hosts; ``*.example.com`` stands for all hosts below it.

    Raises:
        InvalidArgument: it is not such a pattern.
    """
    pattern = normal_host(text)
    if len(pattern) > _HOST_CHARS_MAX or not _HOST.fullmatch(pattern):
        raise InvalidArgument(
            f"{text[:80]!r} cannot be a secret's host: give its name without scheme, port and path, as "
            "api.example.com, *.example.com or an IP address; international names in their xn-- form"
        )
    return pattern


def normal_host(host: str) -> str:
    """A host in the form that patterns are compared with: lower case, no trailing dot, no brackets."""
    return host.strip().lower().removeprefix("[").removesuffix("]").removesuffix(".")


def host_matches(pattern: str, host: str) -> bool:
    """Whether a pattern matches a host."""
    found = normal_host(host)
    if pattern.startswith("*."):
        return found.endswith(pattern[1:]) and len(found) > len(pattern) - 1
    return found == pattern

"""Links as they are written: ``twl1.SECRET``, 256 random bits in base64url. Servers keep only the hash of a link."""

from __future__ import annotations

from taskworker.auth.bearer_secrets import is_secret, new_secret

_PREFIX = "twl1."


def new_link() -> str:
    """Return a new link."""
    return new_secret(_PREFIX)


def is_link(text: str) -> bool:
    """Whether this has the form of a link."""
    return is_secret(_PREFIX, text)

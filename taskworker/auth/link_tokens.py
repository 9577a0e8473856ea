"""Links as they are written: ``twl1.SECRET``, 256 random bits in base64url. Servers keep only the hash of a link."""

from __future__ import annotations

import secrets

_PREFIX = "twl1."
_SECRET_BYTES = 32
_SECRET_CHARACTERS = 43
_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def new_link() -> str:
    """Return a new link."""
    return _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def is_link(text: str) -> bool:
    """Whether this has the form of a link."""
    secret = text.removeprefix(_PREFIX)
    return text.startswith(_PREFIX) and len(secret) == _SECRET_CHARACTERS and set(secret) <= _ALPHABET

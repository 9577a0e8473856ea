"""Random secrets as users' tokens and links are written: a prefix that says which, and 256 bits in base64url."""

from __future__ import annotations

import secrets

_SECRET_BYTES = 32
_SECRET_CHARACTERS = 43
_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def new_secret(prefix: str) -> str:
    """Return a new secret with this prefix."""
    return prefix + secrets.token_urlsafe(_SECRET_BYTES)


def is_secret(prefix: str, text: str) -> bool:
    """Whether this has the form of a secret with this prefix."""
    secret = text.removeprefix(prefix)
    return text.startswith(prefix) and len(secret) == _SECRET_CHARACTERS and set(secret) <= _ALPHABET

"""Tokens of users as they are written.

A token is ``twu1.SECRET``: 256 random bits in base64url. Whoever has it is its user; servers keep only its hash.
"""

from __future__ import annotations

from hashlib import sha256

from taskworker.auth.bearer_secrets import is_secret, new_secret

_PREFIX = "twu1."


def new_token() -> str:
    """Return a new token."""
    return new_secret(_PREFIX)


def secret_of(token: str) -> str:
    """Return the secret in a token."""
    return token.removeprefix(_PREFIX)


def token_with(secret: str) -> str:
    """Inverse of :func:`secret_of`."""
    return _PREFIX + secret


def is_token(text: str) -> bool:
    """Whether this has the form of a token."""
    return is_secret(_PREFIX, text)


def hash_of_token(text: str) -> bytes:
    """Return the hash by which servers know a token. From it, the token cannot be found."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()

"""Tokens of users as they are written.

A token is ``twu1.SECRET``: 256 random bits in base64url. Whoever has it is its user; servers keep only its hash.
"""

from __future__ import annotations

import secrets
from hashlib import sha256

_PREFIX = "twu1."
_SECRET_BYTES = 32
_SECRET_CHARACTERS = 43
_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def new_token() -> str:
    """Return a new token."""
    return _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def is_token(text: str) -> bool:
    """Whether this has the form of a token."""
    secret = text.removeprefix(_PREFIX)
    return text.startswith(_PREFIX) and len(secret) == _SECRET_CHARACTERS and set(secret) <= _ALPHABET


def hash_of_token(text: str) -> bytes:
    """Return the hash by which servers know a token. From it, the token cannot be found."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()

"""The token of a running call, as workers send it with what they do on the call's behalf."""

from __future__ import annotations

_PREFIX = "twc1."


def written(token: str) -> str:
    """Return the token of a call as callers send it."""
    return _PREFIX + token


def read(text: str) -> str:
    """Return the token of a call; empty: this is none."""
    return text.removeprefix(_PREFIX) if text.startswith(_PREFIX) else ""

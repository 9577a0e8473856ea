"""How a call of a function tells which calls led to it: in its metadata, beside the public messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

CHAIN_KEY = "taskworker-chain"
CALL_KEY = "taskworker-call"
_CHAIN_CHARS_MAX = 4_096
_CALL_CHARS_MAX = 64


def chain_metadata(call_id: str, chain: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that ``chain``, outermost first, led to; function names have no commas."""
    return ((CALL_KEY, call_id), (CHAIN_KEY, ",".join(chain)))


def read_chain(metadata: object) -> tuple[str, tuple[str, ...]]:
    """(call id, chain) from a call's metadata; empty where it tells none. What is too long is cut."""
    pairs = dict(cast(Iterable[tuple[str, str | bytes]], metadata or ()))
    call_id, chain = pairs.get(CALL_KEY, ""), pairs.get(CHAIN_KEY, "")
    if not isinstance(call_id, str) or not isinstance(chain, str):
        return "", ()
    return call_id[:_CALL_CHARS_MAX], tuple(filter(None, chain[:_CHAIN_CHARS_MAX].split(",")))

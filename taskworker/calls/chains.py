"""How a call of a function tells which calls led to it: in its metadata, beside the public messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

CHAIN_KEY = "taskworker-chain"
CALL_KEY = "taskworker-call"
PARENT_KEY = "taskworker-parent"
_CHAIN_CHARS_MAX = 4_096
_CALL_CHARS_MAX = 64
_PARENT_CHARS_MAX = 64


@dataclass(frozen=True, slots=True)
class Chain:
    """What a call tells of those that led to it; empty where it tells nothing.

    Attributes:
        call_id: names all of them in logs.
        functions: whose calls they are, outermost first.
        parent: the token of the latest.
    """

    call_id: str = ""
    functions: tuple[str, ...] = ()
    parent: str = ""


def chain_metadata(chain: Chain) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that others led to; function names have no commas."""
    return ((CALL_KEY, chain.call_id), (CHAIN_KEY, ",".join(chain.functions)), (PARENT_KEY, chain.parent))


def read_chain(metadata: object) -> Chain:
    """What a call's metadata tell. What is too long is cut."""
    pairs = dict(cast(Iterable[tuple[str, str | bytes]], metadata or ()))
    call_id, chain, parent = (pairs.get(key, "") for key in (CALL_KEY, CHAIN_KEY, PARENT_KEY))
    if not isinstance(call_id, str) or not isinstance(chain, str) or not isinstance(parent, str):
        return Chain()
    functions = tuple(filter(None, chain[:_CHAIN_CHARS_MAX].split(",")))
    return Chain(call_id[:_CALL_CHARS_MAX], functions, parent[:_PARENT_CHARS_MAX])

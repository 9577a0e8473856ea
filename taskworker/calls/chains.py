"""The chain of calls that led to a call; it travels in gRPC metadata, outside the public messages."""

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
    """The calls that led to a call; all fields are empty if none did.

    Attributes:
        call_id: the id that all of them share in logs.
        functions: the functions called, outermost first.
        parent: the token of the innermost call.
    """

    call_id: str = ""
    functions: tuple[str, ...] = ()
    parent: str = ""


def chain_metadata(chain: Chain) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that other calls led to; joined with commas, which function names cannot have."""
    return ((CALL_KEY, chain.call_id), (CHAIN_KEY, ",".join(chain.functions)), (PARENT_KEY, chain.parent))


def parent_in(metadata: object) -> str:
    """Read the token of the innermost call from a call's metadata; cut if it is too long."""
    return read_chain(metadata).parent


def read_chain(metadata: object) -> Chain:
    """Read the chain from a call's metadata; values that are too long are cut."""
    pairs = dict(cast(Iterable[tuple[str, str | bytes]], metadata or ()))
    call_id, chain, parent = (pairs.get(key, "") for key in (CALL_KEY, CHAIN_KEY, PARENT_KEY))
    if not isinstance(call_id, str) or not isinstance(chain, str) or not isinstance(parent, str):
        return Chain()
    functions = tuple(filter(None, chain[:_CHAIN_CHARS_MAX].split(",")))
    return Chain(call_id[:_CALL_CHARS_MAX], functions, parent[:_PARENT_CHARS_MAX])

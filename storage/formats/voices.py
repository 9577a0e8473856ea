"""Voices: where stores must agree, all stores of one owner count once, since the owner controls what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from storage.erasure import ErasureProfile

Store = TypeVar("Store", int, str)
Voice = tuple[str, str]


def voices(owners: Mapping[Store, str], enough: int) -> dict[Store, Voice]:
    """The voice of each store; it is the same for all stores of one owner.

    Stores without a named owner may all belong to one owner, so they share one voice if ``enough`` owners are named.
    If fewer are named, each of them has its own voice. If there is only one owner, so does every store, since nothing
    could be agreed on otherwise.

    Args:
        owners: the owners of all stores that are asked; "" if unknown.
        enough: how many voices must agree.
    """
    named = {owner for owner in owners.values() if owner}
    if len({*owners.values()}) < 2:
        named = set()
    found: dict[Store, Voice] = {}
    for store, owner in owners.items():
        alone = owner not in named and (owner or len(named) < enough)
        found[store] = ("store", str(store)) if alone else ("owner", owner)
    return found


def agreement_quorum(profile: ErasureProfile, count: int) -> int:
    """How many of ``count`` voices must agree on an object without a MAC: one more than may lie at once, or all."""
    return max(1, min(profile.n - profile.k + 1, count))

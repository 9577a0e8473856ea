"""Voices: who is counted once where stores must agree, as those of one owner say whatever that owner wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from storage.erasure import ErasureProfile

Store = TypeVar("Store", int, str)
Voice = tuple[str, str]


def voices(owners: Mapping[Store, str], enough: int) -> dict[Store, Voice]:
    """The voice of each store: the same for all of one owner.

    Stores whose owner is not named may be one and the same's: where ``enough`` others are named they share one voice.
    Where fewer are, each of them speaks for itself, as do all if there is but one owner: nothing could be agreed on.

    Args:
        owners: of all stores that are asked; "" where that is not told.
        enough: how many voices are to agree.
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
    """How many of so many voices must agree on what no MAC vouches for: one more than may lie at once, or all."""
    return max(1, min(profile.n - profile.k + 1, count))

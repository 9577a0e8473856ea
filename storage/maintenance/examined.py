"""Keeps track of which stores a rebuild has examined, and which may hold more than was shown."""

from __future__ import annotations

from typing import Any

from storage.fleet.fleet import Fleet
from storage.shards import ShardStore


class Examined:
    """Which stores have shown all their records, and which may hold more than was shown.

    A distrusted store is also asked, as signed objects are valid whoever shows them, but the rebuild does not wait for
    it: if no more stores lie than may lie at once, the honest ones have enough of everything.

    Args:
        volumes: the stores.
        liars_max: how many may lie at once.
    """

    def __init__(self, volumes: Fleet[Any], liars_max: int) -> None:
        self._volumes = volumes
        self._liars_max = liars_max
        self._done: set[int] = set()
        self._reasons: dict[int, str] = {}

    def note(self, slot: int) -> None:
        """Note that a store has shown everything."""
        self._done.add(slot)

    def note_failed(self, slot: int, reason: str) -> None:
        """Note that a store has not shown everything, or is not believed to have."""
        self._done.discard(slot)
        self._reasons[slot] = reason

    def pending(self) -> list[tuple[int, ShardStore]]:
        """Available stores that were not asked yet."""
        known = self._done | self._reasons.keys()
        return [(slot, volume) for slot, volume in self._volumes.online() if slot not in known]

    def lacking(self) -> list[tuple[int, str]]:
        """Slots of stores that may hold what no store has shown, and why each was not examined."""
        slots = (slot for slot in self._volumes.slots if slot not in self._done and self.counts(slot))
        return [(slot, self._reason(slot)) for slot in slots]

    def may_come_back(self) -> bool:
        """Whether missing objects may be on a store that was not examined, or has gone away since."""
        away = any(self._volumes.volume(slot) is None for slot in self._volumes.slots if self.counts(slot))
        return away or bool(self.lacking())

    def counts(self, slot: int) -> bool:
        """Whether the rebuild waits for a store, and counts unsigned objects that it shows."""
        distrusted = [other for other in self._volumes.slots if not self._volumes.trusts(other)]
        return slot not in distrusted or len(distrusted) > self._liars_max

    def _reason(self, slot: int) -> str:
        if slot in self._reasons:
            return self._reasons[slot]
        if self._volumes.volume(slot) is not None:
            return "it came back, or was found to lie, while the others were examined"
        return self._volumes.reason(slot) or "it is away"

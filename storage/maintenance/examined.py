"""Which stores a rebuild has examined, and which may hold more than anybody has shown."""

from __future__ import annotations

from typing import Any

from storage.fleet.fleet import Fleet
from storage.shards import ShardStore


class Examined:
    """Which stores have shown all their records, and which may hold more than anybody has shown.

    A store that is not trusted is asked, as what is signed is true whoever shows it, and waited for by none: honest
    stores have enough of everything without those that lie, as long as these are no more than may lie at once.

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
        """A store has shown everything."""
        self._done.add(slot)

    def note_failed(self, slot: int, reason: str) -> None:
        """A store has not, or is not believed to have."""
        self._done.discard(slot)
        self._reasons[slot] = reason

    def pending(self) -> list[tuple[int, ShardStore]]:
        """Stores that are there, and were not asked yet."""
        known = self._done | self._reasons.keys()
        return [(slot, volume) for slot, volume in self._volumes.online() if slot not in known]

    def lacking(self) -> list[tuple[int, str]]:
        """The slots of stores that may hold what nobody has shown, and why each was not examined."""
        slots = (slot for slot in self._volumes.slots if slot not in self._done and self.counts(slot))
        return [(slot, self._reason(slot)) for slot in slots]

    def may_come_back(self) -> bool:
        """Whether what is not there now may be on a store that was not examined, or has gone since."""
        away = any(self._volumes.volume(slot) is None for slot in self._volumes.slots if self.counts(slot))
        return away or bool(self.lacking())

    def counts(self, slot: int) -> bool:
        """Whether what a store may hold is waited for, and what it shows counts though nobody has signed it."""
        distrusted = [other for other in self._volumes.slots if not self._volumes.trusts(other)]
        return slot not in distrusted or len(distrusted) > self._liars_max

    def _reason(self, slot: int) -> str:
        if slot in self._reasons:
            return self._reasons[slot]
        if self._volumes.volume(slot) is not None:
            return "it came, or was found to lie, while the others were examined"
        return self._volumes.reason(slot) or "it is away"

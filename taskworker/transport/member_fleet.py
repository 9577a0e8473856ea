"""A pool's members as the stores of a fleet: their names and owners."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from storage.fleet.fleet import Fleet
from storage.fleet.layout import Layout
from storage.fleet.members import Member
from storage.keys import StripeKey
from taskworker.transport.port import WorkerVolume


class MemberFleet(Fleet[WorkerVolume]):
    """See :class:`storage.fleet.fleet.Fleet`. Slots are those of the layout's members."""

    def __init__(self, clock_s: Callable[[], float], now_ms: Callable[[], int]) -> None:
        super().__init__(clock_s, now_ms)
        self._layouts: tuple[Layout, ...] = ()  # the current one, then former ones
        self._owners: dict[int, str] = {}

    def member(self, slot: int) -> Member | None:
        """The member in a slot, from the newest layout that has it."""
        return next((layout.by_slot[slot] for layout in self._layouts if slot in layout.by_slot), None)

    def name(self, slot: int) -> str:
        """The worker's id."""
        member = self.member(slot)
        return member.worker if member is not None else f"#{slot}"

    def owner(self, slot: int) -> str:
        """See :meth:`Fleet.owner`. The owner by the last join, otherwise by the newest layout with this slot."""
        member = self.member(slot)
        return self._owners.get(slot, member.owner if member is not None else "")

    def place(self, slot: int) -> str:
        """The worker's id."""
        return self.name(slot)

    def directories(self) -> list[Path]:
        """Empty: the volumes are on other machines or in other processes."""
        return []

    def awaits_any(self) -> bool:
        """Whether any known worker, in a layout or not, is away and might come back."""
        return any(store is None for store in list(self._stores.values()))

    def is_settled(self, stripe: StripeKey) -> bool:
        """See :meth:`Fleet.is_settled`. While shards move to the places of a new layout, none is."""
        return len(self._layouts) == 1 and super().is_settled(stripe)

"""What happens to bad shards, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, shard_key
from storage.shards import Location
from storage.stripes.soundness import Soundness

HealRequest = Callable[[StripeKey], None]
"""Asks for a stripe to be healed."""

Places = dict[int, tuple[int, Location | None]]
"""Where shards of a stripe were found, by stripe slot: store slot and place in it."""


class HealRequests:
    """Where reads ask for stripes to be healed.

    Attributes:
        damaged: called with the stripe whenever a read had to get round a rotten shard.
        missing: called with the stripe when a store that is there lacked its shard.
    """

    def __init__(self) -> None:
        self.damaged: HealRequest = lambda stripe: None
        self.missing: HealRequest = lambda stripe: None


class Quarantine:
    """Sets bad shards aside. Thread-safe.

    Args:
        fleet: the stores.
        soundness: learns which stripes have bad shards.
        requests: is asked to have them healed.
    """

    def __init__(self, fleet: Fleet[Any], soundness: Soundness, requests: HealRequests) -> None:
        self._fleet = fleet
        self._soundness = soundness
        self._requests = requests

    def set_aside(self, stripe: StripeKey, places: Places, why: str, *, wrong: bool = False) -> None:
        """Let nobody read these shards any more, and ask for the stripe to be healed.

        Nothing is deleted by this: the stores keep the bytes until they have a good record of the same shard, or
        no file needs it. A shard that was collected and written anew meanwhile is another one, and stays. So does
        one that its store reads well, unless it was proved to be ``wrong``.

        Args:
            stripe: whose shards they are.
            places: the bad shards.
            why: for operators.
            wrong: whether the object proves that the shards are wrong.
        """
        self._soundness.note_damaged(stripe)
        for slot, (holder, place) in places.items():
            key = shard_key(stripe, slot)
            volume = self._fleet.volume(holder)
            if volume is not None and place is not None:
                with self._fleet.guard(holder, volume):
                    volume.discard(key, place, wrong=wrong)
            self._fleet.report("rotten", key, holder, f"shard {slot} quarantined: {why}")
        self._requests.damaged(stripe)

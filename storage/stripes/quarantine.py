"""Setting bad shards aside, reporting them, and requesting healing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, shard_key
from storage.shards import Location
from storage.stripes.origins import WrittenWrongLog
from storage.stripes.soundness import Soundness

HealRequest = Callable[[StripeKey], None]
"""Requests that a stripe be healed."""

Places = dict[int, tuple[int, Location | None]]
"""Where shards of a stripe were found, by stripe slot: slot of the store, and location in the store."""


class HealRequests:
    """Callbacks by which reads request healing.

    Attributes:
        damaged: called with a stripe when a read found a bad shard of it.
        missing: called with a stripe when a present store lacked its shard.
    """

    def __init__(self) -> None:
        self.damaged: HealRequest = lambda stripe: None
        self.missing: HealRequest = lambda stripe: None


class Quarantine:
    """Sets bad shards aside. Thread-safe.

    Args:
        fleet: the stores.
        soundness: remembers which stripes have bad shards.
        requests: called to request healing.
        told: logs what clients wrote wrong.
    """

    def __init__(self, fleet: Fleet[Any], soundness: Soundness, requests: HealRequests, told: WrittenWrongLog) -> None:
        self._told = told
        self._fleet = fleet
        self._soundness = soundness
        self._requests = requests

    def set_aside(
        self, stripe: StripeKey, places: Places, why: str, *, wrong: bool = False, is_blamed: bool = True
    ) -> None:
        """Exclude bad shards from further reads, and request healing of the stripe.

        Nothing is deleted: the stores keep the bytes until they have a good record of the same shard, or until no file
        needs it. A shard that was removed and written again meanwhile stays. So does one that its store can read
        without an error, unless it was proved ``wrong``.

        Args:
            stripe: stripe of the shards.
            places: where the bad shards are.
            why: reason, for operators.
            wrong: whether the decoded object proves that the shards are wrong.
            is_blamed: whether this counts as damage that the stores have; not if a client wrote the shards so, or may
                have.
        """
        self._soundness.note_damaged(stripe)
        for slot, (holder, place) in places.items():
            key = shard_key(stripe, slot)
            volume = self._fleet.volume(holder)
            if volume is not None and place is not None:
                with self._fleet.guard(holder, volume):
                    volume.discard(key, place, wrong=wrong)
            if is_blamed:
                self._fleet.report("rotten", key, holder, f"shard {slot} quarantined: {why}")
            else:
                self._told.note(stripe, f"a client wrote a shard {slot} that does not belong to it; it is made again")
        self._requests.damaged(stripe)

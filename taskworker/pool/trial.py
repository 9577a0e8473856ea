"""Trials: a new member gets its share of the layout in steps, each after its previous shards were read back.

While it is on trial, its capacity counts only up to the median of the proven members', and members on trial hold at
most n - k shards of a stripe.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median_high

from taskworker.pool.events import Events
from taskworker.pool.layout_changes import LayoutChanges
from taskworker.pool.membership import MemberRecord, Membership, Standing
from taskworker.transport.worker_fleet import WorkerFleet

_FIRST_SHARE = 8  # the first step is one part in this many of its full share
_GROWTH = 8


class Trials:
    """Increases the share of members on trial, step by step. Thread-safe, because the objects it uses are.

    Args:
        membership: knows how much of each member's capacity counts.
        fleet: knows who lied.
        layout: changes with each step.
        events: records the end of trials.
    """

    def __init__(self, membership: Membership, fleet: WorkerFleet, layout: LayoutChanges, events: Events) -> None:
        self._membership = membership
        self._fleet = fleet
        self._layout = layout
        self._events = events

    def go_on(self) -> None:
        """Give members on trial a larger share, after everything they were given so far has been read back."""
        records = self._membership.records
        for record in records:
            there = self._fleet.volume(record.slot) is not None and self._fleet.is_spotless(record.slot)
            if not record.allowed or record.standing is not Standing.IN or not there:
                continue
            allowed = next_allowance(record, records)
            self._membership.allow(record.worker, allowed)
            if not allowed:
                self._events.note("proved", f"worker {record.worker} returned everything it was given; its trial ends")
            self._layout.change_soon()


def first_allowance(capacity: int, members: Iterable[MemberRecord]) -> int:
    """How much of a new member's capacity counts at first."""
    return max(1, _believed(capacity, members) // _FIRST_SHARE)


def next_allowance(record: MemberRecord, members: Iterable[MemberRecord]) -> int:
    """How much of its capacity counts after all its shards have been read back; 0: all, and the trial is over."""
    grown = record.allowed * _GROWTH
    return 0 if grown >= _believed(record.capacity, members) // _FIRST_SHARE * _FIRST_SHARE else grown


def _believed(capacity: int, members: Iterable[MemberRecord]) -> int:
    """The capacity, but at most the median of the proven members'; all of it if there are none."""
    proved = [one.capacity for one in members if one.standing is Standing.IN and not one.allowed]
    return min(capacity, median_high(proved)) if proved else capacity

"""Trials: a new member gets its part in the layout in steps, each after what it was given before was read back.

While it is on trial, its capacity is believed as far as members that have proved themselves have as much, and at most
n - k shards of a stripe are on members on trial.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median_high

from taskworker.pool.membership import MemberRecord, Standing

_FIRST_SHARE = 8  # of what it would get otherwise
_GROWTH = 8


def first_allowance(capacity: int, members: Iterable[MemberRecord]) -> int:
    """How much of the capacity of a new member counts at first."""
    return max(1, _believed(capacity, members) // _FIRST_SHARE)


def next_allowance(record: MemberRecord, members: Iterable[MemberRecord]) -> int:
    """How much counts once all that it was given has been read back; 0: all, it is on trial no longer."""
    grown = record.allowed * _GROWTH
    return 0 if grown >= _believed(record.capacity, members) // _FIRST_SHARE * _FIRST_SHARE else grown


def _believed(capacity: int, members: Iterable[MemberRecord]) -> int:
    """The capacity, but no more than members that take part have; of a newcomer among newcomers all of it."""
    proved = [one.capacity for one in members if one.standing is Standing.IN and not one.allowed]
    return min(capacity, median_high(proved)) if proved else capacity

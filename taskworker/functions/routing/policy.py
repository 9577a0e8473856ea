"""What an operator sets for the functions of a pool."""

from __future__ import annotations

from dataclasses import dataclass, field

from taskworker.calls.spec import LIMITS_MAX
from taskworker.functions.routing.record_formats import RecordBounds
from taskworker.functions.routing.users import UserShares
from taskworker.sandbox import Limits


@dataclass(frozen=True, slots=True)
class FunctionPolicy:
    """For all functions of a pool.

    Attributes:
        limits_max: what a function that is deployed may ask for at most.
        records: how much of what calls print is kept.
        shares: how much each user gets.
    """

    limits_max: Limits = LIMITS_MAX
    records: RecordBounds = field(default_factory=RecordBounds)
    shares: UserShares = field(default_factory=UserShares)

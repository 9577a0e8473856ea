"""The operator's settings for the functions of a pool."""

from __future__ import annotations

from dataclasses import dataclass, field

from taskworker.calls.spec import LIMITS_MAX
from taskworker.functions.routing.record_formats import RecordBounds
from taskworker.functions.routing.users import UserShares
from taskworker.sandbox import Limits


@dataclass(frozen=True, slots=True)
class FunctionPolicy:
    """Settings for all functions of a pool.

    Attributes:
        limits_max: the highest limits that a deployed function may ask for.
        records: how much of the output of calls is kept.
        shares: the shares of users.
    """

    limits_max: Limits = LIMITS_MAX
    records: RecordBounds = field(default_factory=RecordBounds)
    shares: UserShares = field(default_factory=UserShares)

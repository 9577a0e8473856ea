"""What an operator sets for the functions of a pool."""

from __future__ import annotations

from dataclasses import dataclass

from taskworker.functions.spec import LIMITS_MAX
from taskworker.sandbox import Limits


@dataclass(frozen=True, slots=True)
class FunctionPolicy:
    """For all functions of a pool.

    Attributes:
        limits_max: what a function that is deployed may ask for at most.
    """

    limits_max: Limits = LIMITS_MAX

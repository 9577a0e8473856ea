"""One run of a scenario: what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.cluster.campaign.verdicts import Verdicts


@dataclass(frozen=True, slots=True)
class Run:
    """What a scenario gets.

    Attributes:
        rounds: how often, or how much: each scenario says what of.
        seed: decides all choices.
        directory: for all data; removed by the caller.
        verdicts: where checks go.
        former: the commit to upgrade from; empty: the scenario's own choice.
    """

    rounds: int
    seed: int
    directory: Path
    verdicts: Verdicts
    former: str = ""

    @property
    def rng(self) -> Random:
        """Fresh random numbers of this seed."""
        return Random(self.seed)

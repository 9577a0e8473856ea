"""An embedded store keeps what was acknowledged, whatever its machine refuses, and however long."""

from __future__ import annotations

import pytest

from tests.simulation.embedded import EmbeddedSimulation
from tests.simulation.surroundings import simulated_surroundings

SEEDS = range(4)
CAMPAIGN_SEEDS = range(4, 404)
FAULTS_MIN = 200


@pytest.mark.parametrize("seed", SEEDS)
def test_errors_of_the_machine_lose_nothing(seed: int) -> None:
    live_through(seed)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", CAMPAIGN_SEEDS)
def test_many_errors_of_the_machine(seed: int) -> None:
    live_through(seed)


def live_through(seed: int) -> None:
    simulation = EmbeddedSimulation(seed, FAULTS_MIN)
    try:
        with simulated_surroundings():
            simulation.run()
    except Exception as error:
        raise AssertionError("\n".join([*simulation.trace, f"seed {seed}"])) from error

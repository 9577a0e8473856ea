"""Any sequence of operations and faults, whatever it was, leaves what was acknowledged."""

from __future__ import annotations

import pytest

from tests.simulation.campaign import Simulation, run_seed
from tests.simulation.surroundings import simulated_surroundings

BLOCK = 20
BLOCKS = range(10)
CAMPAIGN_BLOCKS = range(50, 150)


def check(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        failure = run_seed(seed)
        assert failure is None, f"{failure.trace}\nagain: python -m tests.simulation --seeds {seed}"


@pytest.mark.parametrize("block", BLOCKS)
def test_some_seeds(block: int) -> None:
    check(block)


@pytest.mark.campaign
@pytest.mark.parametrize("block", CAMPAIGN_BLOCKS)
def test_many_seeds(block: int) -> None:
    check(block)


def test_a_seed_tells_the_same_story_again() -> None:
    first, second = (_trace(7) for _ in range(2))
    assert first == second


def _trace(seed: int) -> list[str]:
    with simulated_surroundings():
        simulation = Simulation(seed)
        simulation.run()
    return simulation.trace

"""Random sequences of operations and faults keep everything that was acknowledged."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from tests.simulation.campaign import FAULTS_MIN, Simulation, run_seeds
from tests.simulation.surroundings import simulated_surroundings

SEEDS = range(600)
SEEDS_MIN = 40
WITHIN_S = 10.0  # as many seeds as fit, and SEEDS_MIN at least; `./dev simulate` is for long searches
SEEDS_TOGETHER = 40
PROCESSES = 2
BLOCK = 200
CAMPAIGN_BLOCKS = range(3, 20)


def check(seeds: Iterable[int]) -> None:
    for outcome in run_seeds(seeds, processes=PROCESSES):
        failure, again = outcome.failure, f"again: python -m tests.simulation --seeds {outcome.seed}"
        assert failure is None, f"{failure.trace}\n{again}"
        assert outcome.faults.total() >= FAULTS_MIN, f"too few faults; {again}"


@pytest.mark.timeout(1800)  # 600 take two and a half minutes on two idle processors
def test_six_hundred_seeds_of_two_hundred_faults_as_far_as_time_allows() -> None:
    until_s = time.monotonic() + WITHIN_S
    for start in range(0, len(SEEDS), SEEDS_TOGETHER):
        if start >= SEEDS_MIN and time.monotonic() > until_s:
            break
        check(SEEDS[start : start + SEEDS_TOGETHER])


@pytest.mark.campaign
@pytest.mark.parametrize("block", CAMPAIGN_BLOCKS)
def test_many_seeds(block: int) -> None:
    check(range(block * BLOCK, (block + 1) * BLOCK))


def test_a_seed_tells_the_same_story_again() -> None:
    first, second = (_trace(7) for _ in range(2))
    assert first == second


def _trace(seed: int) -> list[str]:
    with simulated_surroundings():
        simulation = Simulation(seed)
        simulation.run()
    return simulation.trace

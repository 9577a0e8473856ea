"""An embedded store keeps everything that was acknowledged, whichever calls its machine refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.embedded import EmbeddedSimulation
from tests.simulation.embedded_mutations import EMBEDDED_MUTATIONS
from tests.simulation.surroundings import simulated_surroundings

SEEDS = range(4)
CAMPAIGN_SEEDS = range(4, 404)
FAULTS_MIN = 200
SEEDS_MAX = 5


@pytest.mark.parametrize("seed", SEEDS)
def test_errors_of_the_machine_lose_nothing(seed: int) -> None:
    live_through(seed)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", CAMPAIGN_SEEDS)
def test_many_errors_of_the_machine(seed: int) -> None:
    live_through(seed)


def test_a_seed_decides_everything() -> None:
    traces = [lived_through(0, faults_min=30).trace for _ in range(2)]
    assert traces[0] == traces[1]


@pytest.mark.parametrize("plant", EMBEDDED_MUTATIONS, ids=lambda plant: str(plant.__name__))
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(fails(seed) for seed in range(SEEDS_MAX)), "no seed finds it"


def fails(seed: int) -> bool:
    try:
        live_through(seed)
    except AssertionError:
        return True
    return False


def live_through(seed: int) -> None:
    lived_through(seed, FAULTS_MIN)


def lived_through(seed: int, faults_min: int) -> EmbeddedSimulation:
    simulation = EmbeddedSimulation(seed, faults_min)
    try:
        with simulated_surroundings():
            simulation.run()
    except Exception as error:
        raise AssertionError("\n".join([*simulation.trace, f"seed {seed}"])) from error
    return simulation

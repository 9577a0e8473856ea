"""Whatever a power cut leaves of unflushed writes: what was acknowledged is there, all else wholly or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.simulation import Campaign

SEEDS = range(10)
STATES_MIN = 30  # crash states of each seed; 300 in all
CAMPAIGN_SEEDS = range(1000, 1200)


@pytest.mark.parametrize("seed", SEEDS)
def test_crash_states(seed: int, fast_directory: Path) -> None:
    campaign = Campaign(seed, fast_directory)
    campaign.run()
    assert campaign.states >= STATES_MIN


@pytest.mark.campaign
@pytest.mark.parametrize("seed", CAMPAIGN_SEEDS)
def test_many_crash_states(seed: int, fast_directory: Path) -> None:
    Campaign(seed, fast_directory, generations=6, steps=40, points=12, variants=4).run()

"""The simulator finds bugs that are planted in the code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.campaign import run_seed
from tests.simulation.mutations import MUTATIONS

SEEDS_MAX = 200


@pytest.mark.parametrize("plant", MUTATIONS, ids=lambda plant: str(plant.__name__))
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(run_seed(seed).failure is not None for seed in range(SEEDS_MAX)), "no seed finds it"

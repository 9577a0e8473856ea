"""The simulator finds bugs that are planted in the code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.campaign import run_seed
from tests.simulation.mutations import MUTATIONS

SEEDS_MAX = 200
FIRST_SEEDS = {
    "drop_uncompared": 196,
    "believe_stale_volumes": 3,
    "believe_unsigned_records": 37,
    "ignore_owners": 8,
    "take_absent_workers_for_lost": 8,
    "leave_copies_behind": 164,
    "tell_copies_apart": 10,
}
"""Where to begin, for bugs that no lower seed finds; any seed may find them."""


@pytest.mark.parametrize("plant", MUTATIONS, ids=lambda plant: str(plant.__name__))
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    first = FIRST_SEEDS.get(str(plant.__name__), 0)
    assert any(run_seed(first + number).failure is not None for number in range(SEEDS_MAX)), "no seed finds it"

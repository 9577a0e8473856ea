"""The long runs of ``python -m tests.functions``, in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.functions.killing import kill_workers
from tests.functions.soak import soak


@pytest.mark.campaign
def test_calls_under_a_killed_worker_are_answered_or_said_to_be_uncertain(tmp_path: Path) -> None:
    told = kill_workers(tmp_path, rounds=1, seed=0)
    assert told.violations == []
    assert told.calls == 16 * 6 + 2


@pytest.mark.campaign
def test_calls_of_all_kinds_end_as_they_should_and_leave_nothing_behind(tmp_path: Path) -> None:
    told = soak(tmp_path, calls=160, seed=0, at_rest=False, compiled=False)
    assert told.violations == []
    assert told.outcomes.total() == 160

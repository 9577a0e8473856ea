"""The campaigns run, and say what they found."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.campaign
def test_a_scenario_comes_to_its_verdict() -> None:
    command = [sys.executable, "-m", "tests.cluster", "kill-workers", "--rounds", "1", "--seed", "5"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "kill-workers: all 4 checks hold" in ended.stdout

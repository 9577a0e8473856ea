"""The suite that compares pools with and without security runs and reports at the smallest sizes."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.progress import RunProgress
from benchmarks.session import Session
from benchmarks.suites import security
from tests.benchmarks.test_run import TINY


@pytest.mark.campaign
def test_security_is_compared_with_none(tmp_path: Path) -> None:
    before = os.environ.get("XDG_CONFIG_HOME")
    result = security.run(Session(tmp_path, TINY, RunProgress(Console(file=io.StringIO()))))
    assert {target.mark for target in result.targets} == {"e"}
    assert len(result.targets) == 8
    assert all(len(figure.samples) == TINY.rounds for figure in result.figures)
    encrypted = [figure for figure in result.figures if figure.name.startswith("plain sockets") and figure.ratios]
    assert len(encrypted) == 4
    assert os.environ.get("XDG_CONFIG_HOME") == before
    assert list(tmp_path.iterdir()) == []

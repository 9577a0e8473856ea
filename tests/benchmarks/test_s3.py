"""The suite of the S3 gateway runs and reports at the smallest sizes."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.progress import RunProgress
from benchmarks.session import Session
from benchmarks.suites import s3
from tests.benchmarks.test_run import TINY


@pytest.mark.campaign
def test_the_gateway_is_compared_with_the_client(tmp_path: Path) -> None:
    sizes = replace(TINY, s3_bytes=1 << 20)
    result = s3.run(Session(tmp_path, sizes, RunProgress(Console(file=io.StringIO()))))
    assert [target.bound for target in result.targets] == [0.8, 0.8, 0.8, 0.5, 0.5, 0.5, 0.5, 1000, 300.0]
    assert result.targets[-2].verdict == "met"
    assert list(tmp_path.iterdir()) == []

"""Both ends of the transport keep their promises whatever arrives: arbitrary bytes, and good ones that were spoilt."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.transport.fuzz_targets import GOOD, TARGETS

each_target = pytest.mark.parametrize("name", TARGETS)
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@each_target
def test_good_inputs(name: str) -> None:
    for raw in GOOD[name]:
        TARGETS[name](raw)


@each_target
@given(raw=st.binary(max_size=400))
@QUIET
def test_arbitrary_bytes(name: str, raw: bytes) -> None:
    TARGETS[name](raw)


@each_target
@given(data=st.data())
@QUIET
def test_good_inputs_that_were_spoilt(name: str, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(GOOD[name])))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    TARGETS[name](bytes(raw))


@pytest.mark.campaign
@pytest.mark.timeout(0)
@each_target
def test_inputs_made_up_to_reach_new_code(name: str) -> None:
    """Guided by coverage, for ``FUZZ_SECONDS`` for each target."""
    if find_spec("atheris") is None:
        pytest.skip("atheris is not installed, as it has no wheel for this Python: nothing was searched by coverage")
    seconds = os.environ.get("FUZZ_SECONDS", "120")
    options = [
        f"-max_total_time={seconds}",
        "-max_len=2000",
        "-timeout=20",
        "-rss_limit_mb=1000",
        "-print_final_stats=1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.transport.fuzz", name, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]

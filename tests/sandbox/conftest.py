"""Fixtures of the sandbox tests: one host for all of them, and its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskworker.sandbox import SandboxHost


@pytest.fixture(scope="package")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


class Clock:
    """The machine's clock, which can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture(scope="package")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="package")
def host(bundles: Path, clock: Clock) -> Iterator[SandboxHost]:
    host = SandboxHost(bundles, clock_s=clock)
    host.start()
    yield host
    host.close()

"""Fixtures of the sandbox tests: one host for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskworker.sandbox import SandboxHost


@pytest.fixture(scope="package")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="package")
def host(bundles: Path) -> Iterator[SandboxHost]:
    host = SandboxHost(bundles)
    host.start()
    yield host
    host.close()

"""An authority, and members of its pool."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskworker.auth.authority import Authority
from tests.auth.members import POOL, Members


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority.pem", POOL)


@pytest.fixture
def members(authority: Authority) -> Members:
    return Members(authority)

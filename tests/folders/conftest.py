"""The files of a user in an embedded store, and in a real pool."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import FileStorage
from taskworker.client.folders import ClientFiles
from taskworker.folders.embedded import StoreFiles
from taskworker.folders.ports import Files
from tests.shared_files import pool, store, user

__all__ = ["pool", "store", "user"]


@pytest.fixture
def store_files(store: FileStorage, user: str) -> Files:
    return StoreFiles(store, user)


@pytest.fixture(params=["store", "pool"])
def files(request: pytest.FixtureRequest, user: str) -> Files:
    """Of each of both."""
    if request.param == "store":
        return StoreFiles(request.getfixturevalue("store"), user)
    return ClientFiles(request.getfixturevalue("pool").client, user)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory to fill."""
    directory = tmp_path / "source"
    directory.mkdir()
    return directory

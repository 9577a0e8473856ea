"""The files of a user in an embedded store, and in a real pool."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage, InsufficientWorkers
from taskworker.client.folders import ClientFiles
from taskworker.folders.embedded import StoreFiles
from taskworker.folders.ports import Files
from tests.functions.processes import FunctionPool


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileStorage]:
    with FileStorage.open(tmp_path_factory.mktemp("store"), profile=ErasureProfile(1, 2)) as store:
        yield store


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionPool]:
    with FunctionPool(tmp_path_factory.mktemp("pool")) as pool:
        while True:
            try:
                pool.client.push(b"", filename="f", user_id="first")
                break
            except InsufficientWorkers:  # they are only just joining
                time.sleep(0.05)
        yield pool


@pytest.fixture
def user() -> str:
    """A user of the test's own, so that tests do not see each other's files."""
    return f"user-{uuid.uuid4().hex}"


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

"""Fixtures of several directories: a store and a pool that their tests share, and users of each test's own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from storage import ErasureProfile, FileStorage, InsufficientWorkers
from tests.functions.processes import FunctionPool


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileStorage]:
    """An embedded store."""
    with FileStorage.open(tmp_path_factory.mktemp("store"), profile=ErasureProfile(1, 2)) as store:
        yield store


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionPool]:
    """A pool of real processes that takes files."""
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

"""A store and a pool that the tests of this directory share, each with a filesystem over it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage, InsufficientWorkers
from taskworker.gateways.fsspec import PoolFileSystem, StoreFileSystem, VersionedFileSystem
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
def store_fs(store: FileStorage, user: str) -> VersionedFileSystem:
    return StoreFileSystem(store=store, user=user, skip_instance_cache=True)


@pytest.fixture
def pool_fs(pool: FunctionPool, user: str) -> VersionedFileSystem:
    return PoolFileSystem(pool.address, user, skip_instance_cache=True)


@pytest.fixture(params=["store", "pool"])
def fs(request: pytest.FixtureRequest) -> VersionedFileSystem:
    """Each of both filesystems."""
    found: VersionedFileSystem = request.getfixturevalue(f"{request.param}_fs")
    return found


def write(path: Path, content: bytes = b"data") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path

"""A store and a pool that the tests of this directory share, each with a filesystem over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import FileStorage
from taskworker.gateways.fsspec import PoolFileSystem, StoreFileSystem, VersionedFileSystem
from tests.functions.processes import FunctionPool
from tests.shared_files import pool, store, user

__all__ = ["pool", "store", "user"]


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

"""Fixtures of the storage tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import FileStorage
from tests.storage.helpers import open_store

_MEMORY = Path("/dev/shm")
_FREE_BYTES_MIN = 1 << 30


@pytest.fixture(scope="session")
def fast() -> Iterator[Path | None]:
    """A directory in memory, where flushing costs nothing; None if there is no room."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _FREE_BYTES_MIN:
        yield None
        return
    path = Path(tempfile.mkdtemp(prefix="taskworker-storage-", dir=_MEMORY))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def scratch(fast: Path | None, tmp_path: Path) -> Iterator[Path]:
    """An empty directory of this test."""
    if fast is None:
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(dir=fast))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def module_scratch(fast: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory of this test module."""
    return tmp_path_factory.mktemp("module") if fast is None else Path(tempfile.mkdtemp(dir=fast))


@pytest.fixture
def root(scratch: Path) -> Path:
    """The directory of the store under test."""
    return scratch / "store"


@pytest.fixture
def store(root: Path) -> Iterator[FileStorage]:
    """A 4-of-6 store with chunks of 64 KiB."""
    with open_store(root) as opened:
        yield opened

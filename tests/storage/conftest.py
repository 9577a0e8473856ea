"""Fixtures of the storage tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import FileStorage
from tests.storage.helpers import open_store

Reopen = Callable[[], FileStorage]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store under test is."""
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[FileStorage]:
    """A 4-of-6 store with chunks of 64 KiB."""
    with open_store(root) as opened:
        yield opened

"""Where crash tests keep their stores."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")
_FREE_BYTES_MIN = 1 << 30


@pytest.fixture
def fast_directory(tmp_path: Path) -> Iterator[Path]:
    """An empty directory in memory where there is room: simulated disks have no need of a real one."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _FREE_BYTES_MIN:
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="taskworker-crash-", dir=_MEMORY))
    try:
        yield path
    finally:
        shutil.rmtree(path)

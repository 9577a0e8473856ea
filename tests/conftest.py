"""In which order several processes run the tests: what takes longest first, so that none works on alone at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

LONGEST = (
    "simulation/test_seeds.py",
    "cli/test_files.py",
    "cluster/test_cluster.py",
    "storage/test_layout.py",
    "cli/test_sync.py",
)
"""Files of tests that take longest, the longest first; each is run by one process."""
_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first where pytest-xdist hands files out to processes."""
    if hasattr(config, "workerinput"):
        ranks = {_TESTS / name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path, len(LONGEST)))

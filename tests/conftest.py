"""What all tests share: the order in which several processes run them, and what spares slow machines.

What takes longest is first, so that none works on alone at the end. How long an example takes says how busy the
machine is, and nothing of what is tested.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

LONGEST = (
    "functions/test_in_pool.py",
    "cluster/test_cluster.py",
    "docs/test_documentation.py",
    "pool/test_shard_store_conformance.py",
    "sandbox/test_lifecycle.py",
    "crash/test_crash_states.py",
    "storage/test_layout.py",
    "transport/test_hostile_callers.py",
    "cluster/test_links.py",
    "gateways/test_fsspec_suite.py",
    "benchmarks/test_cluster.py",
    "gateways/s3/test_clients.py",
    "functions/test_command_line.py",
    "cli/test_readme.py",
    "cluster/test_hosts.py",
    "crash/test_disk_full.py",
    "secrets/test_in_pool.py",
    "cluster/test_crowd.py",
    "functions/test_examples.py",
    "benchmarks/test_run.py",
    "simulation/test_seeds.py",
)
"""Files of tests that take longest, the longest first; each is run by one process."""
_TESTS = Path(__file__).parent


_CONFIG = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep contexts and states apart from those of whoever runs the tests; each process of tests has its own."""
    os.environ["XDG_CONFIG_HOME"] = config.stash[_CONFIG] = tempfile.mkdtemp(prefix="taskworker-config-")
    os.environ["XDG_STATE_HOME"] = os.path.join(config.stash[_CONFIG], "state")  # noqa: PTH118 - a text


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove them."""
    shutil.rmtree(config.stash[_CONFIG], ignore_errors=True)


def pytest_collection_finish() -> None:
    """Leave the half million objects that were loaded out of all searches for garbage."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first where pytest-xdist hands files out to processes."""
    if hasattr(config, "workerinput"):
        ranks = {_TESTS / name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path, len(LONGEST)))

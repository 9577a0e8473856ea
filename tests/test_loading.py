"""Programs start without what most of them never use, as loading it takes a large part of their first second."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("started", "left_out"),
    [
        ("taskworker.apps.pool_server", {"httpx", "hishel", "rich", "prometheus_client", "pycparser"}),
        (
            "taskworker.worker.volume, taskworker.worker.functions, taskworker.worker.places",
            {"storage.engine", "prometheus_client", "pycparser", "importlib.metadata"},
        ),
        ("taskworker.cli.remote", {"lmdb", "storage.reports", "taskworker.folders.entries"}),
    ],
    ids=["pool", "worker", "client"],
)
def test_what_is_not_used_is_not_loaded(started: str, left_out: set[str]) -> None:
    program = f"import sys, {started}; print({left_out!r} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded == "set()\n"

"""The engine is independent: it imports no networking, no asyncio, and nothing that is built on it."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import storage
from tests.storage.helpers import python_environment

FORBIDDEN = ("grpc", "asyncio", "google", "taskworker")
_CODE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print("\\n".join(sorted(sys.modules)))
"""


def _loaded(*modules: str) -> set[str]:
    """Return the top-level names of all modules that importing these loads."""
    command = [sys.executable, "-c", _CODE, *modules]
    child = subprocess.run(command, env=python_environment(), capture_output=True, text=True, timeout=60, check=True)
    return {name.split(".")[0] for name in child.stdout.split()}


def _all_modules() -> list[str]:
    return [found.name for found in pkgutil.walk_packages(storage.__path__, "storage.")]


def test_importing_the_engine_loads_nothing_of_the_network() -> None:
    assert not _loaded("storage") & set(FORBIDDEN)


def test_nor_does_any_of_its_modules() -> None:
    modules = _all_modules()
    assert {"storage.engine", "storage.shards.volume", "storage.maintenance.rebuild"} <= set(modules)
    assert not _loaded(*modules) & set(FORBIDDEN)


def test_public_names_are_there() -> None:
    assert sorted(storage.__all__) == storage.__all__
    for name in storage.__all__:
        assert hasattr(storage, name)


def test_nothing_public_is_left_out_of_the_contract() -> None:
    """The names promised by the documentation."""
    promised = {
        "FileStorage", "ErasureProfile", "Version", "ManifestDiff", "Patch", "StorageError", "FileNotFound",
        "VersionNotFound", "PermissionDenied", "ConflictError", "InvalidArgument", "DataLossError",
        "InsufficientWorkers", "StoreFull", "StoreLocked", "FormatError",
    }  # fmt: skip
    assert promised <= set(storage.__all__)
    methods = {
        "open", "push", "get", "open_file", "diff", "revise", "synchronize", "history", "list_files", "delete",
        "scrub", "repair", "collect", "rebuild", "stats", "close",
    }  # fmt: skip
    assert methods <= set(dir(storage.FileStorage))
    errors = [getattr(storage, name) for name in promised if name.endswith(("Error", "Found", "Denied", "Full"))]
    assert all(issubclass(error, storage.StorageError) for error in errors)

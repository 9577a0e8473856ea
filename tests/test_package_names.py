"""What packages offer is there under its name, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ["storage", "storage.shards", "taskworker", "taskworker.client"]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_that_is_offered_is_there(name: str) -> None:
    package = import_module(name)
    assert package.__all__
    for offered in package.__all__:
        assert getattr(package, offered) is not None
        assert offered in dir(package)


@pytest.mark.parametrize("name", PACKAGES)
def test_other_names_are_told_not_to_be_there(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing_of_the_kind'"):
        getattr(import_module(name), "nothing_of_the_kind")  # noqa: B009 - nor does mypy know of it


def test_who_asks_a_pool_for_its_state_does_not_load_an_engine() -> None:
    script = "import sys, taskworker.client.pool; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "storage.errors" in loaded
    assert not {"storage.engine", "storage.shards.volume", "lmdb", "zfec"} & {*loaded}

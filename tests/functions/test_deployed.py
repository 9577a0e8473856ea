"""Functions as files of the pool: deployed, listed, rolled back, ended; and what their calls leave in the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import FileStorage
from storage.errors import FormatError, InvalidArgument
from taskworker.bundles.archive import packed
from taskworker.bundles.spec import FunctionSpec
from taskworker.errors import FunctionNotFound
from taskworker.functions.statistics import CallStatistics
from taskworker.pool.deployed import DeployedFunctions


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStorage]:
    store = FileStorage.open(tmp_path / "store")
    yield store
    store.close()


def bundle(text: str, name: str = "f", **options: object) -> bytes:
    return packed(FunctionSpec(name=name, entry="app:f", **options), {"app/app.py": text.encode()}).bundle  # type: ignore[arg-type]


def test_versions_of_a_function(store: FileStorage) -> None:
    deployed = DeployedFunctions(store)
    assert deployed.find("f") is None
    first = deployed.deploy(bundle("1"), "ann")
    assert first.changed
    assert not deployed.deploy(bundle("1"), "ann").changed
    second = deployed.deploy(bundle("2", concurrency=5, idempotent=False), "bob")
    found = deployed.find("f")
    assert found is not None
    assert (found.version, found.concurrency, found.idempotent) == (second.version.version_id, 5, False)
    assert DeployedFunctions(store).find("f") == found  # after a restart
    assert [(version.version_id, version.note) for version in deployed.history("f")] == [
        (second.version.version_id, "bob"),
        (first.version.version_id, "ann"),
    ]


def test_rolling_back_makes_an_earlier_version_the_newest(store: FileStorage) -> None:
    deployed = DeployedFunctions(store)
    versions = [
        deployed.deploy(bundle(text, concurrency=number + 1), "ann").version for number, text in enumerate("abc")
    ]
    deployed.roll_back("f", "", "bob")
    assert deployed.find("f").concurrency == 2  # type: ignore[union-attr]
    deployed.roll_back("f", versions[0].version_id[:10], "bob")
    assert deployed.find("f").concurrency == 1  # type: ignore[union-attr]
    assert len(deployed.history("f")) == 5
    with pytest.raises(InvalidArgument, match="no versions that begin with 'zz'"):
        deployed.roll_back("f", "zz", "bob")
    with pytest.raises(FunctionNotFound):
        deployed.roll_back("g", "", "bob")
    deployed.deploy(bundle("x", name="g"), "ann")
    with pytest.raises(InvalidArgument, match="but one version"):
        deployed.roll_back("g", "", "bob")


def test_what_is_undeployed_is_gone(store: FileStorage) -> None:
    deployed = DeployedFunctions(store)
    deployed.deploy(bundle("1"), "ann")
    deployed.deploy(bundle("1", name="g"), "ann")
    deployed.undeploy("f")
    assert deployed.find("f") is None
    assert [function.name for function, _ in deployed.all()] == ["g"]
    with pytest.raises(FunctionNotFound, match="'f'"):
        deployed.undeploy("f")


def test_garbage_is_not_deployed(store: FileStorage) -> None:
    deployed = DeployedFunctions(store)
    with pytest.raises(FormatError):
        deployed.deploy(b"garbage", "ann")
    assert deployed.all() == []


def test_figures_of_calls() -> None:
    statistics = CallStatistics()
    for number in range(100):
        statistics.ended(number / 1000, failed=number % 10 == 0)
    statistics.from_cache()
    figures = statistics.figures()
    assert (figures.calls, figures.errors, figures.cached) == (101, 10, 1)
    assert (figures.p50_s, figures.p95_s, figures.p99_s) == (0.05, 0.095, 0.099)
    assert figures.rate == pytest.approx(100 / 60)
    for _ in range(10_000):
        statistics.ended(0.5, failed=False)
    assert (statistics.figures().calls, statistics.figures().p50_s) == (10_101, 0.5)

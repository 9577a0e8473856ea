"""Functions as files of the pool: deployed, listed, rolled back, ended; and what their calls leave in the log."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import FileStorage
from storage.errors import FormatError, InvalidArgument, PermissionDenied, QuotaExceeded, StorageError
from storage.write.quotas import NO_QUOTA, Quota
from taskworker.calls.bundle import packed
from taskworker.calls.owners import CANDIDATE_OWNER
from taskworker.calls.spec import FunctionSpec
from taskworker.errors import FunctionBroken, FunctionNotFound, FunctionsUnavailable
from taskworker.functions.routing.port import RoutedFunction
from taskworker.functions.routing.statistics import CallStatistics
from taskworker.pool.deployed import DeployedFunctions


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStorage]:
    store = FileStorage.open(tmp_path / "store")
    yield store
    store.close()


def bundle(text: str, name: str = "f", **options: object) -> bytes:
    return packed(FunctionSpec(name=name, entry="app:f", **options), {"app/app.py": text.encode()}).bundle  # type: ignore[arg-type]


class Importing:
    """Workers that import functions, and what keeps them from it."""

    def __init__(self) -> None:
        self.failure: StorageError | None = None
        self.seen: list[RoutedFunction] = []
        self.looked: Callable[[RoutedFunction], bool] = lambda _: True
        self.looks: list[bool] = []

    def able(self, function: RoutedFunction) -> list[str]:
        return [] if self.failure is not None else ["w2", "w1"]

    def obstacles(self, function: RoutedFunction) -> dict[str, str]:
        return {"w3": "has no labels"}

    def prepare(self, function: RoutedFunction) -> tuple[str, ...]:
        self.seen.append(function)
        self.looks.append(self.looked(function))
        if self.failure is not None:
            raise self.failure
        return ("w1",)


IMPORTING = Importing()


def test_what_cannot_be_imported_does_not_go_live(store: FileStorage) -> None:
    importing = Importing()
    deployed = DeployedFunctions(store, importing)
    importing.failure = FunctionBroken("no such module")
    with pytest.raises(FunctionBroken, match="f is not deployed as this version: no such module"):
        deployed.deploy(bundle("1"), "ann")
    assert deployed.find("f") is None
    importing.failure = FunctionsUnavailable("no worker has gpu=h100")
    first = deployed.deploy(bundle("1", needs={"gpu": "h100"}), "ann")  # nothing is lost by it
    assert (first.changed, first.imported_by, first.not_imported) == (True, (), "no worker has gpu=h100")
    assert importing.seen[-1].needs == {"gpu": "h100"}
    for failure in (FunctionsUnavailable("all are away"), FunctionBroken("no such module")):
        importing.failure = failure
        with pytest.raises(type(failure)):
            deployed.deploy(bundle("2"), "ann")
    importing.failure = None
    assert deployed.deploy(bundle("2"), "ann", dry_run=True).imported_by == ("w1",)
    assert [version.version_id for version in deployed.history("f")] == [first.version_id]
    second = deployed.deploy(bundle("2"), "ann")
    assert (second.imported_by, second.not_imported) == (("w1",), "")
    assert (second.able, second.unable) == (("w1", "w2"), {"w3": "has no labels"})
    importing.failure = FunctionBroken("it needs a package that is gone")
    with pytest.raises(FunctionBroken):
        deployed.roll_back("f", "", "ann")
    importing.failure = FunctionsUnavailable("all are away")
    assert deployed.roll_back("f", "", "ann").not_imported == "all are away"
    assert store.list_files(user_id=CANDIDATE_OWNER) == []


def test_candidates_that_a_killed_pool_has_left_are_dropped(store: FileStorage) -> None:
    store.push(b"left", filename="old", user_id=CANDIDATE_OWNER, time_ms=1_000)
    store.push(b"under way", filename="new", user_id=CANDIDATE_OWNER)
    DeployedFunctions(store, Importing()).deploy(bundle("1"), "ann")
    assert [version.filename for version in store.list_files(user_id=CANDIDATE_OWNER)] == ["new"]


def test_versions_count_for_those_who_deployed_them(store: FileStorage) -> None:
    deployed = DeployedFunctions(store, IMPORTING)
    policy = store.upkeep.policy
    policy.beside = deployed.bytes_of
    deployed.deploy(bundle("1"), "ann")
    deployed.deploy(bundle("2"), "bob")
    one = deployed.bytes_of("ann")
    assert one >= len(bundle("1"))
    assert deployed.bytes_of("bob") == pytest.approx(one, abs=200)
    policy.quota_of = lambda user: Quota(one + 2000) if user == "ann" else NO_QUOTA
    with pytest.raises(QuotaExceeded, match="ann"):
        deployed.deploy(bundle(os.urandom(10_000).hex()), "ann")
    assert [version.note for version in deployed.history("f")] == ["bob", "ann"]
    with pytest.raises(QuotaExceeded):
        store.push(bytes(4000), filename="a", user_id="ann")
    policy.quota_of = lambda user: Quota(one) if user == "bob" else NO_QUOTA
    assert not deployed.deploy(bundle("2"), "bob").changed  # which takes nothing
    deployed.undeploy("f")
    assert (deployed.bytes_of("ann"), deployed.bytes_of("bob")) == (0, 0)
    store.push(bytes(4000), filename="a", user_id="ann")
    assert DeployedFunctions(store, IMPORTING).bytes_of("ann") == 0


def test_versions_of_a_function(store: FileStorage) -> None:
    deployed = DeployedFunctions(store, IMPORTING)
    assert deployed.find("f") is None
    first = deployed.deploy(bundle("1"), "ann")
    assert first.changed
    assert not deployed.deploy(bundle("1"), "ann").changed
    second = deployed.deploy(bundle("2", concurrency=5, idempotent=False), "bob")
    found = deployed.find("f")
    assert found is not None
    assert (found.version, found.concurrency, found.idempotent) == (second.version_id, 5, False)
    assert DeployedFunctions(store, IMPORTING).find("f") == found  # after a restart
    assert [(version.version_id, version.note) for version in deployed.history("f")] == [
        (second.version_id, "bob"),
        (first.version_id, "ann"),
    ]


def test_rolling_back_makes_an_earlier_version_the_newest(store: FileStorage) -> None:
    deployed = DeployedFunctions(store, IMPORTING)
    versions = [deployed.deploy(bundle(text, concurrency=number + 1), "ann") for number, text in enumerate("abc")]
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
    with pytest.raises(InvalidArgument, match="only one version"):
        deployed.roll_back("g", "", "bob")


def test_what_is_undeployed_is_gone(store: FileStorage) -> None:
    deployed = DeployedFunctions(store, IMPORTING)
    deployed.deploy(bundle("1"), "ann")
    deployed.deploy(bundle("1", name="g"), "ann")
    deployed.undeploy("f")
    assert deployed.find("f") is None
    assert [function.name for function, _ in deployed.all()] == ["g"]
    with pytest.raises(FunctionNotFound, match="'f'"):
        deployed.undeploy("f")


def test_garbage_is_not_deployed(store: FileStorage) -> None:
    deployed = DeployedFunctions(store, IMPORTING)
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


def test_which_version_is_the_newest_is_known_without_its_bundle(store: FileStorage) -> None:
    deployed = DeployedFunctions(store, IMPORTING)
    first = deployed.deploy(bundle("1"), "ann").version_id
    second = deployed.deploy(bundle("2"), "ann").version_id
    for known in (deployed, DeployedFunctions(store, IMPORTING)):
        assert [known.is_wanted("f", version) for version in (first, second, "")] == [False, True, False]
        assert not known.is_wanted("g", second)
    deployed.undeploy("f")
    assert not deployed.is_wanted("f", second)


def test_what_workers_tried_is_wanted_until_something_else_is_deployed(store: FileStorage) -> None:
    importing = Importing()
    deployed = DeployedFunctions(store, importing)
    importing.looked = lambda function: deployed.is_wanted("f", function.version)

    def wanted() -> list[bool]:
        return [deployed.is_wanted("f", function.version) for function in importing.seen]

    deployed.deploy(bundle("1"), "ann", dry_run=True)
    assert wanted() == [False]
    deployed.deploy(bundle("1"), "ann")
    deployed.deploy(bundle("2"), "ann", dry_run=True)
    importing.failure = FunctionBroken("no such module")
    with pytest.raises(FunctionBroken):
        deployed.deploy(bundle("3"), "ann")
    importing.failure = None
    deployed.deploy(bundle("1", name="g"), "ann")
    assert wanted() == [False, True, False, False, False]
    deployed.deploy(bundle("4"), "ann")
    deployed.roll_back("f", "", "ann")
    assert wanted() == [False] * 6 + [True]
    deployed.undeploy("f")
    assert wanted() == [False] * 7
    assert importing.looks == [True] * 7  # while each was being tried


def test_a_bundle_of_a_function_that_may_not_be_deployed_leaves_nothing(store: FileStorage) -> None:
    deployed = DeployedFunctions(store, Importing())

    def permit(name: str) -> None:
        raise PermissionDenied(f"not {name}")

    with pytest.raises(PermissionDenied, match="not f"):
        deployed.deploy(bundle("f = 1"), "ann", permit=permit)
    pushed = store.push(bundle("f = 1"), filename="pushed", user_id=CANDIDATE_OWNER)
    with pytest.raises(PermissionDenied, match="not f"):
        deployed.deploy_pushed(pushed.file_id, pushed.version_id, "ann", permit=permit)
    assert store.counts().files == 0
    assert not deployed.any()

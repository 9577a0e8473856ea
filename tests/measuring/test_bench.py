"""`taskworker bench` measures what it says, for users without any special right, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import ErasureProfile, FileStorage, StorageError
from taskworker.measuring import limits
from taskworker.measuring.content import Content
from taskworker.measuring.figures import figures, percentile
from taskworker.measuring.running import Callers
from tests.functions.processes import FunctionPool

PROGRAM = (sys.executable, "-m", "taskworker")
WAIT_S = 120


def bench(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
    run = subprocess.run([*PROGRAM, "bench", "--json", *arguments], stdout=subprocess.PIPE, check=False, timeout=WAIT_S)
    assert run.returncode == code
    found: list[dict[str, Any]] = json.loads(run.stdout)
    return found


def left(pool: FunctionPool, user: str) -> list[str]:
    return [head.filename for head in pool.client.iter_files(user_id=user)]


def running(pool: FunctionPool, user: str) -> subprocess.Popen[bytes]:
    """A run that has stored something and goes on."""
    arguments = ["--pool", pool.address, "--user", user, "--sizes", "1KiB", "--callers", "2", "--seconds", "100"]
    process = subprocess.Popen([*PROGRAM, "bench", *arguments], stdout=subprocess.DEVNULL)
    give_up_s = time.monotonic() + WAIT_S
    while len(left(pool, user)) < 5:
        assert time.monotonic() < give_up_s
        time.sleep(0.05)
    return process


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], part: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, part)
    assert found in ordered
    assert sum(each <= found for each in ordered) >= part * len(ordered)
    assert sum(each < found for each in ordered) < part * len(ordered)


def test_figures_of_nothing_are_none() -> None:
    nothing = figures("put", 1, 1, [], 1.0, None, ["no"])
    assert (nothing.median_s, nothing.per_s, nothing.failed, nothing.error) == (None, 0.0, 1, "no")


def test_no_two_files_are_equal() -> None:
    content = Content(64)
    assert len({bytes(content.of(number)) for number in range(5000)}) == 5000


def test_callers_work_at_the_same_time_and_each_at_least_once() -> None:
    together = threading.Barrier(4)

    def meet(_number: int) -> None:
        together.wait(WAIT_S)

    run = Callers(4, 0, 100).run(meet)
    assert len(run.durations_s) == 4


def test_failures_are_counted_and_other_errors_raised() -> None:
    def fail(number: int) -> None:
        raise StorageError("no") if number < 10 else OSError("broken")

    assert Callers(1, 60, 10).run(fail).failures == ["no"] * 10
    with pytest.raises(OSError, match="broken"):
        Callers(1, 60, 11).run(fail)


def test_a_store_is_measured_beside_its_disk_and_left_as_it_was(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with FileStorage.open(store, profile=ErasureProfile(1, 2)) as opened:
        opened.push(b"mine", filename="mine", user_id="ann")
    rows = bench("--store", str(store), "--user", "ann", "--sizes", "1KiB,1MiB", "--callers", "1,2", "--seconds", "0.1")
    assert [(row["operation"], row["size"], row["callers"]) for row in rows] == [
        (operation, size, callers) for size in (1024, 1 << 20) for callers in (1, 2) for operation in ("put", "get")
    ]
    for row in rows:
        assert row["count"] >= row["callers"]
        assert row["failed"] == 0
        assert 0 < row["median_s"] <= row["p90_s"] <= row["p99_s"] <= row["slowest_s"]
        assert row["limit"]["what"] == "disk"
        assert row["of_limit"] == pytest.approx(row["limit"]["seconds"] / row["median_s"])
    with FileStorage.open(store) as opened:
        assert [head.filename for head in opened.list_files(user_id="ann")] == ["mine"]


def test_a_pool_and_its_function_are_measured(pool: FunctionPool, user: str, tmp_path: Path) -> None:
    (tmp_path / "adding.py").write_text("def add(a: int, b: int) -> int:\n    return a + b\n")
    pool.deploy("add", "adding:add", tmp_path)
    pool.await_workers("add", 3)
    at = ["--pool", pool.address, "--user", user]
    function = ["--function", "add", "--arg", "3", "--arg", "4"]
    rows = bench(*at, "--sizes", "1KiB", "--callers", "2", "--seconds", "0.1", *function)
    assert [row["operation"] for row in rows] == ["put", "get", "call"]
    assert all(row["failed"] == 0 and row["limit"]["what"] == "loopback" for row in rows)
    assert left(pool, user) == []


def test_an_interrupted_run_deletes_all_and_what_a_killed_one_left_can_be(pool: FunctionPool, user: str) -> None:
    pool.client.push(b"mine", filename="mine", user_id=user)
    process = running(pool, user)
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 130
    assert left(pool, user) == ["mine"]
    process = running(pool, user)
    process.kill()
    process.wait()
    assert len(left(pool, user)) > 1
    pool.client.push(b"my figures", filename=".bench/figures.csv", user_id=user)
    cleaned = subprocess.run(
        [*PROGRAM, "bench", "--clean", "--pool", pool.address, "--user", user], stdout=subprocess.PIPE, check=True
    )
    assert b"deleted" in cleaned.stdout
    assert left(pool, user) == [".bench/figures.csv", "mine"]


@pytest.mark.parametrize("options", [["--sizes", "0"], ["--sizes", "x"], ["--callers", "1000"], ["--arg", "3"]])
def test_wrong_options_are_refused_before_anything_is_done(options: list[str]) -> None:
    nowhere = ["--store", os.devnull + "/nowhere"]
    run = subprocess.run([*PROGRAM, "bench", *options, *nowhere], stderr=subprocess.PIPE, check=False)
    assert run.returncode == 2


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
def test_limits_can_be_measured_of_any_size(size: int, tmp_path: Path) -> None:
    assert limits.loopback_limit(size).seconds > 0
    assert all(limit.seconds > 0 for limit in limits.disk_limits(tmp_path, size, 2 * size))
    assert limits.connect_limit("nowhere") is None

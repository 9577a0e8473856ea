"""What is kept of calls: lines and figures, over restarts, bounded by size and age."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskworker.errors import FunctionFailed
from taskworker.functions.call_log import CallLog
from taskworker.functions.calls import Call, CallReport, OutputLine
from taskworker.functions.records import LineQuery, RecordBounds
from taskworker.functions.statistics import StatisticsByFunction


@contextlib.contextmanager
def opened(
    path: Path | None = None, bounds: RecordBounds | None = None, statistics: StatisticsByFunction | None = None
) -> Iterator[CallLog]:
    with contextlib.closing(CallLog(path, bounds, statistics)) as log:
        yield log


def printed(log: CallLog, text: str, *, function: str = "f", call_id: str = "c", time_ms: int | None = None) -> None:
    at = time.time_ns() // 1_000_000 if time_ms is None else time_ms
    log.finished(Call(function, call_id=call_id), "w", CallReport(output=[OutputLine(at, "stdout", text)]))


def texts(log: CallLog, query: LineQuery | None = None, tail: int | None = None) -> list[str]:
    return [line.text for line in log.read(query or LineQuery("f"), tail=tail) if line is not None]


def test_lines_and_figures_are_there_after_a_restart(tmp_path: Path) -> None:
    statistics = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=statistics) as log:
        for number in range(600):
            statistics.of("f").ended(number / 1000, failed=number < 3)
        statistics.of("f").from_cache()
        statistics.of("g").was_moved()
        printed(log, "before")
        log.finished(Call("f", call_id="d"), "w", CallReport(error=FunctionFailed("ValueError: no")))
        before = statistics.of("f").figures()
    again = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=again) as log:
        printed(log, "after")
        assert texts(log) == ["before", "FunctionFailed: ValueError: no", "after"]
        after = again.of("f").figures()
        assert (after.calls, after.errors, after.cached) == (before.calls, before.errors, before.cached) == (601, 3, 1)
        assert (after.rate, again.of("g").figures().moved) == (0, 1)
        assert 0.3 < after.p50_s < after.p95_s < after.p99_s < 0.6
    assert stat.S_IMODE((tmp_path / "calls").stat().st_mode) == 0o600


def test_lines_are_found_by_function_call_time_and_number() -> None:
    begun = time.time_ns() // 1_000_000  # older ones than are kept would be dropped in between
    with opened() as log:
        for number in range(1_200):
            printed(log, f"line {number}", call_id=f"{number % 3}abc", time_ms=begun + number)
        printed(log, "another", function="g", call_id="0abc")
        assert texts(log) == [f"line {number}" for number in range(1_200)]
        assert texts(log, tail=2) == ["line 1198", "line 1199"]
        assert texts(log, tail=0) == []
        assert texts(log, tail=10_000) == texts(log)
        assert texts(log, LineQuery("f", since_ms=begun + 1_197)) == ["line 1197", "line 1198", "line 1199"]
        assert texts(log, LineQuery("f", "0ab"), tail=1) == ["line 1197"]
        assert texts(log, LineQuery(call_id="0abc"))[-2:] == ["line 1197", "another"]
        assert texts(log, LineQuery("f", "0_bc")) == texts(log, LineQuery("unknown")) == []


def test_what_comes_can_be_followed() -> None:
    seen: list[str] = []
    ready = threading.Event()

    def follow(log: CallLog) -> None:
        for line in log.read(LineQuery("f"), tail=1, follow=True):
            if line is not None:
                seen.append(line.text)
                if line.text == "last":
                    return
            ready.set()

    with opened() as log:
        printed(log, "too old")
        printed(log, "kept")
        follower = threading.Thread(target=follow, args=(log,))
        follower.start()
        assert ready.wait(20)
        printed(log, "of another", function="g")
        printed(log, "new")
        printed(log, "last")
        follower.join(20)
        assert seen == ["kept", "new", "last"]


def test_a_function_that_prints_much_keeps_its_latest_lines_and_others_theirs() -> None:
    bounds = RecordBounds(function_bytes=100_000, total_bytes=150_000)
    with opened(bounds=bounds) as log:
        printed(log, "of g", function="g")
        for number in range(500):
            printed(log, f"{number} " + "x" * 1_000)
            if number % 100 == 0:
                texts(log)  # which writes what is there
        kept = texts(log)
        assert kept[-1].startswith("499 ")
        assert 80_000 < sum(map(len, kept)) <= 100_000
        assert texts(log, LineQuery("g")) == ["of g"]
        for function in ("g", "h"):
            for _ in range(90):
                printed(log, "y" * 1_000, function=function)
        texts(log)
        everything = [text for function in "fgh" for text in texts(log, LineQuery(function))]
        assert sum(map(len, everything)) <= 150_000


def test_what_is_too_old_is_forgotten(tmp_path: Path) -> None:
    hour_ms = 3_600_000
    now_ms = time.time_ns() // 1_000_000
    with opened(tmp_path / "calls") as log:
        printed(log, "old", time_ms=now_ms - 2 * hour_ms)
        printed(log, "new", time_ms=now_ms)
    with opened(tmp_path / "calls", RecordBounds(age_s=3600.0)) as log:
        give_up = time.monotonic() + 20
        while texts(log) != ["new"]:
            assert time.monotonic() < give_up
            time.sleep(0.02)


def test_a_damaged_file_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "calls").write_bytes(b"no database at all" * 1000)
    with opened(tmp_path / "calls") as log:
        printed(log, "anew")
        assert texts(log) == ["anew"]
    assert (tmp_path / "calls.damaged").read_bytes().startswith(b"no database")
    with contextlib.closing(sqlite3.connect(tmp_path / "calls")) as database:
        database.execute("pragma user_version = 99")
    with opened(tmp_path / "calls") as log:
        assert texts(log) == []
    assert "format 99" in caplog.text


def test_figures_that_cannot_be_read_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    statistics = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=statistics):
        statistics.of("f").ended(1.0, failed=False)
    with contextlib.closing(sqlite3.connect(tmp_path / "calls")) as database:
        database.execute("update figures set document = ?", (b'[-1, 0, 0, 0, ["x"]]',))
        database.commit()
    again = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=again):
        assert again.of("f").figures().calls == 0
    assert "begin anew" in caplog.text


def test_a_disk_that_takes_nothing_holds_up_no_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "calls").mkdir()  # no file can be made there
    with opened(tmp_path / "calls") as log:
        printed(log, "in memory")
        assert texts(log) == ["in memory"]
    assert "in memory only" in caplog.text

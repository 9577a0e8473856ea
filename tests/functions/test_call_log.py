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

from storage.system.lmdb_env import Environment
from taskworker.calls.call import Call, CallReport, OutputLine
from taskworker.errors import FunctionFailed
from taskworker.functions.routing.call_log import CallLog
from taskworker.functions.routing.record_formats import Entry, LineQuery, RecordBounds
from taskworker.functions.routing.records import CallRecords
from taskworker.functions.routing.statistics import StatisticsByFunction


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
    assert stat.S_IMODE((tmp_path / "calls").stat().st_mode) == 0o700


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
        assert 50_000 < sum(map(len, kept)) <= 100_000  # the bound is of what they take on disk
        assert texts(log, LineQuery("g")) == ["of g"]
        for function in ("g", "h"):
            for _ in range(90):
                printed(log, "y" * 1_000, function=function)
        texts(log)
        everything = [text for function in "fgh" for text in texts(log, LineQuery(function))]
        assert sum(map(len, everything)) <= 150_000


def test_what_is_too_old_is_forgotten_by_the_pool_s_clock(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    with contextlib.closing(CallRecords(tmp_path / "calls")) as records:
        for hours, text in ((2, "old"), (0, "new")):
            line = (now_ms + 10**12, "stdout", text)  # a worker may say what it wants
            records.add(Entry.all_of("f", "c", "w", [line]), now_ms - hours * 3_600_000)
    with opened(tmp_path / "calls", RecordBounds(age_s=3600.0)) as log:
        give_up = time.monotonic() + 60
        while texts(log) != ["new"]:
            assert time.monotonic() < give_up
            time.sleep(0.02)


def test_a_damaged_environment_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "calls"
    path.mkdir()
    (path / "data.mdb").write_bytes(b"no database at all" * 1000)
    with opened(path) as log:
        printed(log, "anew")
        assert texts(log) == ["anew"]
    assert (tmp_path / "calls.damaged" / "data.mdb").read_bytes().startswith(b"no database")
    changed(path, "meta", b"format", b"99")
    with opened(path) as log:
        assert texts(log) == []
    assert "format 99" in caplog.text


def test_a_torn_copy_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its headers are from before its other pages."""
    data = tmp_path / "calls" / "data.mdb"
    with opened(tmp_path / "calls") as log:
        for number in range(400):
            printed(log, str(number), call_id=str(number))
    headers = data.read_bytes()[:8192]
    for more in range(8):
        with opened(tmp_path / "calls") as log:
            printed(log, f"more {more}")
    raw = headers + data.read_bytes()[8192:]
    data.unlink()
    data.write_bytes(raw)
    with opened(tmp_path / "calls") as log:
        printed(log, "anew")
        assert texts(log) == ["anew"]
    assert (tmp_path / "calls.damaged" / "data.mdb").read_bytes() == raw
    assert "copied while it was in use" in caplog.text


def test_damage_found_while_it_is_written_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path / "calls") as log:
        printed(log, "before")
    changed(tmp_path / "calls", "functions", b"f", b"\xff")
    with opened(tmp_path / "calls") as log:
        printed(log, "after")
        assert texts(log) == ["after"]
    assert "is damaged" in caplog.text


def test_damage_that_cannot_be_put_aside_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path / "calls") as log:
        printed(log, "before")
    changed(tmp_path / "calls", "functions", b"f", b"\xff")
    (tmp_path / "calls.damaged").write_bytes(b"something else")  # no directory can take its place
    with opened(tmp_path / "calls") as log:
        printed(log, "lost")
        assert texts(log, LineQuery("", call_id="c")) == ["before"]
        (tmp_path / "calls.damaged").unlink()
        printed(log, "after")
        assert texts(log) == ["after"]
    assert caplog.text.count("cannot be saved") == 1


def test_a_fault_in_writing_does_not_end_the_writing(caplog: pytest.LogCaptureFixture) -> None:
    with opened() as log:
        lines = log.read(LineQuery("", call_id="c"), follow=True)
        assert next(lines) is None
        printed(log, "lost", function="\ud800")  # no name of a function
        give_up = time.monotonic() + 60
        while "failed" not in caplog.text:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        printed(log, "after")
        while (line := next(lines)) is None:
            assert time.monotonic() < give_up
        assert line.text == "after"


def test_figures_that_cannot_be_read_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    statistics = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=statistics):
        statistics.of("f").ended(1.0, failed=False)
    changed(tmp_path / "calls", "figures", b"f", b'[-1, 0, 0, 0, ["x"]]')
    again = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=again):
        assert again.of("f").figures().calls == 0
    assert "start from zero" in caplog.text


def changed(path: Path, database: str, key: bytes, value: bytes) -> None:
    """As damage would."""
    with contextlib.closing(Environment(path, (database,))) as env:
        env.write(lambda txn: txn.put(key, value, db=env.databases[database]))


def test_a_disk_that_takes_nothing_holds_up_no_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "calls").write_bytes(b"")  # no directory can be made there
    with opened(tmp_path / "calls") as log:
        printed(log, "for now")
        assert texts(log) == ["for now"]
    assert "only until this process ends" in caplog.text


@pytest.mark.parametrize("length", [0, 1_300, 2_100, 4_097, 200_000])
def test_the_files_stay_within_the_bound_whatever_is_printed(tmp_path: Path, length: int) -> None:
    bounds = RecordBounds(function_bytes=2 << 20, total_bytes=3 << 20)
    text = "\N{GRINNING FACE}" * (length // 4)
    lines = max(1, 60_000 // max(length, 40))
    with opened(tmp_path / "calls", bounds) as log:
        for number in range(250):
            output = [OutputLine(0, "stdout", text)] * lines
            log.finished(Call("fgh"[number % 3], call_id=f"{number:032x}"), "w", CallReport(output=output))
            if number % 10 == 0:
                texts(log, tail=0)  # which writes what is there
    size = (tmp_path / "calls" / "data.mdb").stat().st_blocks * 512
    assert size < 2 * bounds.total_bytes


def test_a_text_that_is_none_in_utf_8_holds_nothing_up(tmp_path: Path) -> None:
    with opened(tmp_path / "calls") as log:
        printed(log, "a lone \ud800 surrogate")
        printed(log, "next")
        assert texts(log) == ["a lone ? surrogate", "next"]


def test_figures_of_a_function_that_is_gone_are_not_kept(tmp_path: Path) -> None:
    statistics = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=statistics):
        for function in "fg":
            statistics.of(function).ended(1.0, failed=False)
    again = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=again):
        again.forget("f")
        again.of("g").ended(1.0, failed=False)
    last = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=last):
        assert (last.figures("f").calls, last.figures("g").calls) == (0, 2)


_FORMER = """
create table lines (
    id integer primary key, function text not null, call_id text not null, worker text not null,
    time_ms integer not null, stream text not null, text text not null
);
create index lines_of_functions on lines (function, id);
create index lines_of_calls on lines (call_id, id);
create table figures (function text primary key, document blob not null);
pragma user_version = 1;
"""


def test_what_earlier_versions_kept_is_taken_over(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    former = tmp_path / "calls.sqlite"
    with contextlib.closing(sqlite3.connect(former)) as database:
        database.executescript(_FORMER)
        database.executemany(
            "insert into lines (function, call_id, worker, time_ms, stream, text) values (?, ?, 'w', ?, 'stdout', ?)",
            [("fg"[number % 2], "c", now_ms + number, f"line {number}") for number in range(6)],
        )
        database.execute("insert into figures values ('f', ?)", (b"[3, 1, 0, 0, [0.25]]",))
        database.commit()
    statistics = StatisticsByFunction()
    with opened(tmp_path / "calls", statistics=statistics) as log:
        assert texts(log) == ["line 0", "line 2", "line 4"]
        assert (statistics.figures("f").calls, statistics.figures("f").p50_s) == (3, 0.25)
    assert not former.exists()
    with opened(tmp_path / "calls") as log:
        assert texts(log, LineQuery("g")) == ["line 1", "line 3", "line 5"]

"""Figures over time: which are kept, and how they are drawn."""

from __future__ import annotations

import re

from taskworker.client.pool import PoolStatus
from taskworker.gateways.page.charts import charts_of
from taskworker.gateways.page.history import History, Sample


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def status(stored: int) -> PoolStatus:
    return PoolStatus("p", "well", 2, 2, 2, 1, 1, stored, 4, 6, "isa-l", 1, [], [], [])


def test_an_hour_is_kept_finely_and_a_day_coarsely() -> None:
    clock = Clock()
    history = History(clock)
    for number in range(2 * 24 * 360):  # two days, every ten seconds
        for _ in range(3):  # asked for by several people
            history.note(status(number), None)
        clock.now_ms += 10_000
    samples = history.samples()
    times = [sample.time_ms for sample in samples]
    assert times == sorted(set(times))
    assert times[-1] == clock.now_ms - 10_000
    assert 23 * 3_600_000 < times[-1] - times[0] <= 25 * 3_600_000
    assert len(samples) < 700


def test_a_clock_that_is_set_back_begins_anew() -> None:
    clock = Clock()
    history = History(clock)
    for _ in range(5):
        history.note(status(1), None)
        clock.now_ms += 10_000
    clock.now_ms -= 86_400_000
    history.note(status(1), None)
    assert [sample.time_ms for sample in history.samples()] == [clock.now_ms]


def sample(at_s: int, stored: int, calls: float | None = None) -> Sample:
    return Sample(1000 * at_s, 2 * stored, stored, 1, 0.25, calls)


def test_charts_say_in_words_what_they_show() -> None:
    assert charts_of([sample(0, 0), sample(10, 10)]) == []
    charts = charts_of([sample(0, 0, 1.0), sample(10, 10_240, 2.0), sample(20, 5_120, 0.5)])
    by_title = {chart.title: chart for chart in charts}
    assert 'aria-label="Space used on workers: now 10.0 KiB, at most 20.0 KiB in the last 20 s"' in charts[0].svg
    assert by_title["Data stored per second"].rows == [(20_000, "0 B/s"), (10_000, "1.0 KiB/s")]
    assert by_title["Calls of functions per second"].now == "0.5/s"
    assert len(charts_of([sample(at, 1) for at in range(3)])) == len(charts) - 1, "calls are not known"


def test_no_line_is_drawn_where_nothing_is_known() -> None:
    [chart, *_] = charts_of([sample(0, 1), sample(10, 1), sample(10_000, 1), sample(10_010, 1)])
    assert len(re.findall("<polyline", chart.svg)) == 2

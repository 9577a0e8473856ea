"""What ``compare`` says of two runs: nothing that chance or a moved limit could explain."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compare import NO_DIFFERENCE, RatioOfMedians, compare_figures, verdict_on
from benchmarks.measure import Better, Figure, Limit, Spread, SuiteResult, Target
from benchmarks.report import Report, ReportError, read_json, write_json

SLOW = (10.0, 11.0, 12.0, 11.5, 10.5)
FAST = (20.0, 21.0, 22.0, 21.5, 20.5)


def figure(samples: tuple[float, ...], limit: tuple[float, ...] | None = None, better: Better = "higher") -> Figure:
    return Figure("push", "MB/s", samples, better, Limit("the disk", limit) if limit else None)


def test_overlapping_ranges_are_no_difference() -> None:
    assert verdict_on(figure(SLOW), figure((12.0, 13.0, 14.0, 15.0, 16.0))) == NO_DIFFERENCE


def test_ranges_apart_are_a_difference_in_the_figures_own_direction() -> None:
    assert verdict_on(figure(SLOW), figure(FAST)) == "better"
    assert verdict_on(figure(FAST), figure(SLOW)) == "worse"
    assert verdict_on(figure(SLOW, better="lower"), figure(FAST, better="lower")) == "worse"


def test_few_rounds_never_make_a_verdict() -> None:
    verdict = verdict_on(figure(SLOW[:3]), figure(FAST[:3]))
    assert verdict.startswith(NO_DIFFERENCE)
    assert "too few" in verdict


def test_a_figure_that_moved_with_its_limit_makes_no_verdict() -> None:
    first, second = figure(SLOW, limit=SLOW), figure(FAST, limit=FAST)
    assert verdict_on(first, second) == f"{NO_DIFFERENCE}: the limit moved along"
    assert verdict_on(first, figure(FAST, limit=SLOW)) == "better"


def test_ratio_of_medians_spans_all_pairs_of_rounds() -> None:
    ratio = RatioOfMedians.of(Spread.of((1.0, 2.0, 4.0)), Spread.of((2.0, 4.0, 6.0)))
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 0.5, 6.0)


def test_only_figures_of_both_runs_are_compared() -> None:
    found = compare_figures({"engine": [figure(SLOW)], "grpc": [figure(SLOW)]}, {"engine": [figure(FAST)]})
    assert [(one.suite, one.name) for one in found] == [("engine", "push")]


def test_ratios_are_taken_within_each_round_and_more_is_always_better() -> None:
    assert figure((1.0, 4.0), limit=(2.0, 4.0)).ratios == (0.5, 1.0)
    assert figure((1.0, 4.0), limit=(2.0, 4.0), better="lower").ratios == (2.0, 1.0)


@pytest.mark.parametrize(
    ("samples", "verdict", "within_noise"),
    [((1.1, 1.2, 1.3), "met", False), ((0.9, 1.2, 1.3), "met", True), ((0.7, 0.8, 0.9), "missed", False)],
)
def test_a_target_is_judged_by_its_median_and_says_when_rounds_disagree(
    samples: tuple[float, ...], verdict: str, within_noise: bool
) -> None:
    target = Target("b", "push", "at least", 1.0, "x", samples)
    assert (target.verdict, target.within_noise) == (verdict, within_noise)


def test_a_report_reads_back_as_it_was(tmp_path: Path) -> None:
    target = Target("b", "push", "at least", 1.0, "x", (1.5, 1.6), "push", reduced=True)
    limit = Limit("the disk", SLOW, {"write": 1.0})
    suite = SuiteResult("engine", (Figure("push", "MB/s", FAST, limit=limit, note="n"),), (target,), ("remark",), 2.0)
    report = Report({"cpu": "x"}, {"rounds": 5}, "2026-01-01T00:00:00+00:00", (suite,))
    write_json(report, tmp_path / "results.json")
    assert read_json(tmp_path / "results.json") == report


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "no json"])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=r"results\.json"):
        read_json(path)

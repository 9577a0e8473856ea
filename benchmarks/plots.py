"""Plots of each suite: how close each figure comes to its limit, the targets, and a plot for each of its charts.

Memory is drawn in MiB, because its limit is a lower bound rather than a goal. A chart shows the values of its figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed to write a file

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.measure import Figure, Spread, SuiteResult, Target
from benchmarks.report import number, with_unit

BAR, GOOD, BAD, TARGET, LIMIT = "#4c78a8", "#2b8a3e", "#c92a2a", "#e8590c", "#495057"
BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
ROW_INCHES = 0.62
WIDE = 50.0
"""How many times the lowest value of a panel the highest one may be before the scale is logarithmic."""
LABEL_CHARACTERS = 46


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its value with spread, the text beside it, and the bound of its target."""

    label: str
    spread: Spread
    text: str
    target: Target | None
    bound: float | None


Panel = tuple[Sequence[Bar], str, float | None]
"""Bars, the text below them, and where to draw a line."""


def draw(suite: SuiteResult, directory: Path, suffix: str) -> list[Path]:
    """Draw the suite to files in ``directory``, as PNG or SVG by their suffix; return their paths."""
    ratio_bars = [
        _ratio_bar(figure, suite.targets) for figure in suite.figures if figure.ratios and figure.unit != "MiB"
    ]
    memory_bars = [_memory_bar(figure, suite.targets) for figure in suite.figures if figure.unit == "MiB"]
    cost_bars = [_target_bar(target) for target in suite.targets if _is_own_comparison(target, suite)]
    panels: list[Panel] = [
        (ratio_bars, "ratio to the physical limit of the same run (1 = the limit, more is better)", 1.0),
        (cost_bars, "acceptance ratios", None),
        (memory_bars, "peak resident memory, MiB", None),
    ]
    drawn = [_draw_panels(suite.name, panels, directory / f"{suite.name}{suffix}")]
    for chart in dict.fromkeys(figure.chart for figure in suite.figures if figure.chart):
        path = directory / f"{suite.name}-{chart.replace(' ', '-')}{suffix}"
        drawn.append(_draw_panels(f"{suite.name}, {chart}", _chart_panels(suite, chart), path))
    return [path for path in drawn if path is not None]


def _chart_panels(suite: SuiteResult, chart: str) -> list[Panel]:
    """Return a panel for each unit of a chart's figures."""
    figures = [figure for figure in suite.figures if figure.chart == chart]
    panels: list[Panel] = []
    for unit in dict.fromkeys(figure.unit for figure in figures):
        same = [figure for figure in figures if figure.unit == unit]
        direction = "more" if same[0].better == "higher" else "less"
        panels.append(([_value_bar(figure) for figure in same], f"{unit} ({direction} is better)", None))
    return panels


def _draw_panels(title: str, panels: Sequence[Panel], path: Path) -> Path | None:
    """Draw panels below each other; return None if there is nothing to draw."""
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return None
    heights = [len(bars) + 1.4 for bars, _, _ in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(11, ROW_INCHES * sum(heights) + 0.8), squeeze=False, height_ratios=heights
    )
    for axis, (bars, heading, line) in zip(axes[:, 0], panels, strict=True):
        _panel(axis, bars, heading, line)
    figure.suptitle(f"{title}: medians, whiskers from lowest to highest round", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _panel(axis: Axes, bars: Sequence[Bar], title: str, line: float | None) -> None:
    """Draw one set of horizontal bars, the first on top."""
    places = range(len(bars))
    medians = [bar.spread.median for bar in bars]
    below = [bar.spread.median - bar.spread.low for bar in bars]
    above = [bar.spread.high - bar.spread.median for bar in bars]
    style = {"ecolor": "#212529", "capsize": 3, "elinewidth": 1}
    marks = [bar.bound for bar in bars if bar.bound is not None]
    highest = max([*(bar.spread.high for bar in bars), *marks, line or 0.0])
    wide = _is_wide(bars)
    if wide:  # no bars, as they have no length on a logarithmic scale
        axis.errorbar(medians, list(places), xerr=(below, above), fmt="o", color=BAR, capsize=3)
    else:
        colours = [_colour(bar) for bar in bars]
        axis.barh(places, medians, xerr=(below, above), color=colours, error_kw=style, height=0.6)
    for place, bar in zip(places, bars, strict=True):
        if bar.bound is not None:
            axis.plot([bar.bound, bar.bound], [place - 0.42, place + 0.42], color=TARGET, linewidth=2.5)
        text_start = bar.spread.high * 1.15 if wide else bar.spread.high + highest * 0.012
        axis.text(text_start, place, bar.text, va="center", fontsize=9, bbox=BEHIND_TEXT, zorder=5)
    if line is not None:
        axis.axvline(line, color=LIMIT, linestyle="--", linewidth=1)
    axis.set_yticks(list(places), [_wrapped(bar.label) for bar in bars], fontsize=9)
    axis.invert_yaxis()
    if wide:
        axis.set_xscale("log")
        axis.set_xlim(min(bar.spread.low for bar in bars) / 1.5, highest * 4)
    else:
        axis.set_xlim(0, highest * 1.38)
    axis.set_xlabel(title + ("; orange line: target, green: met, red: missed" if marks else ""), fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _is_wide(bars: Sequence[Bar]) -> bool:
    """Whether the values differ too much for a linear scale. Panels with targets are always linear."""
    lowest, highest = min(bar.spread.low for bar in bars), max(bar.spread.high for bar in bars)
    return 0 < lowest * WIDE < highest and all(bar.bound is None for bar in bars)


def _ratio_bar(figure: Figure, targets: Sequence[Target]) -> Bar:
    spread = Spread.of(figure.ratios)
    target = next((one for one in targets if one.figure == figure.name and one.samples == figure.ratios), None)
    text = f"{number(spread.median)}x   {with_unit(figure.spread.median, figure.unit)}"
    return Bar(figure.name, spread, text, target, target.bound if target else None)


def _value_bar(figure: Figure) -> Bar:
    return Bar(figure.name, figure.spread, with_unit(figure.spread.median, figure.unit), None, None)


def _memory_bar(figure: Figure, targets: Sequence[Target]) -> Bar:
    target = next((one for one in targets if one.figure == figure.name and one.unit == "MiB"), None)
    floor = f", floor {number(figure.limit.samples[0])}" if figure.limit else ""
    text = f"{number(figure.spread.median)} MiB{floor}"
    return Bar(figure.name, figure.spread, text, target, target.bound if target else None)


def _target_bar(target: Target) -> Bar:
    return Bar(target.text, target.spread, f"{number(target.spread.median)}x", target, target.bound)


def _is_own_comparison(target: Target, suite: SuiteResult) -> bool:
    """Whether the target's ratio is not that of a figure to its limit, such as degraded to healthy."""
    shown = any(figure.name == target.figure and figure.ratios == target.samples for figure in suite.figures)
    return target.unit == "x" and not shown


def _colour(bar: Bar) -> str:
    if bar.target is None:
        return BAR
    return {"met": GOOD, "missed": BAD}.get(bar.target.verdict, BAR)


def _wrapped(label: str) -> str:
    """Break a long label into two lines at a space."""
    if len(label) <= LABEL_CHARACTERS:
        return label
    cut = label.rfind(" ", 0, LABEL_CHARACTERS)
    return f"{label[:cut]}\n{label[cut + 1 :]}" if cut > 0 else label

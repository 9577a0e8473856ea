"""Small charts as SVG, without styles of their own: the page's style sheet gives them colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from taskworker.gateways.page.history import Sample
from taskworker.readable import duration_text, size_text

_WIDTH = 320
_TOP, _BOTTOM = 6, 78
_STEPS_SHOWN = 12
_GAP_MS = 15 * 60_000
"""No line is drawn over a longer time without figures."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, and the same in words and numbers.

    Attributes:
        title: what it shows.
        now: the newest value.
        svg: the picture.
        rows: some of the values, each with its time in milliseconds since 1970.
    """

    title: str
    now: str
    svg: Markup
    rows: list[tuple[int, str]]


Point = tuple[int, float]


def charts_of(samples: Sequence[Sample]) -> list[Chart]:
    """The charts of a pool's figures; none before there are three of them, which are two rates."""
    if len(samples) < 3:
        return []
    calls = [(one.time_ms, one.calls_per_s) for one in samples if one.calls_per_s is not None]
    found = [
        _chart("Space used on workers", [(one.time_ms, float(one.used)) for one in samples], _bytes),
        _chart("Data stored per second", _rates(samples, lambda one: one.stored), _bytes_per_s),
        _chart("Versions stored per second", _rates(samples, lambda one: one.versions), _per_s),
        _chart("Processor of workers", [(one.time_ms, one.cpu) for one in samples], lambda value: f"{value:.0%}"),
    ]
    if len(calls) >= 2:
        found.append(_chart("Calls of functions per second", calls, _per_s))
    return found


def _rates(samples: Sequence[Sample], value: Callable[[Sample], int]) -> list[Point]:
    """By how much a value grew each second. That files are deleted makes it smaller, and counts as nothing."""
    return [
        (after.time_ms, max(0.0, (value(after) - value(before)) * 1000 / (after.time_ms - before.time_ms)))
        for before, after in pairwise(samples)
    ]


def _chart(title: str, points: Sequence[Point], text: Callable[[float], str]) -> Chart:
    first_ms, last_ms = points[0][0], points[-1][0]
    most = max(value for _, value in points)
    now = text(points[-1][1])
    scale = most or 1.0
    span = max(1, last_ms - first_ms)

    def place(point: Point) -> tuple[float, float]:
        return (point[0] - first_ms) * _WIDTH / span, _BOTTOM - point[1] / scale * (_BOTTOM - _TOP)

    lines = [[place(point) for point in part] for part in _without_gaps(points)]
    drawn = Markup().join(_area(line) for line in lines)
    label = f"{title}: now {now}, at most {text(most)} in the last {duration_text(span / 1000)}"
    svg = Markup(
        '<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">'
        '<line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/><line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/>{}</svg>'
    ).format(label, _WIDTH, _BOTTOM + 2, _WIDTH, _TOP, _TOP, _WIDTH, _BOTTOM, _BOTTOM, drawn)
    step = max(1, len(points) // _STEPS_SHOWN)
    return Chart(title, now, svg, [(time_ms, text(value)) for time_ms, value in points[::-step][:_STEPS_SHOWN]])


def _without_gaps(points: Sequence[Point]) -> list[list[Point]]:
    parts: list[list[Point]] = [[points[0]]]
    for before, after in pairwise(points):
        if after[0] - before[0] > _GAP_MS:
            parts.append([])
        parts[-1].append(after)
    return parts


def _area(line: Sequence[tuple[float, float]]) -> Markup:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
    return Markup('<polygon class="area" points="{:.1f},{} {} {:.1f},{}"/><polyline class="line" points="{}"/>').format(
        line[0][0], _BOTTOM, text, line[-1][0], _BOTTOM, text
    )


def _bytes(value: float) -> str:
    return size_text(int(value))


def _bytes_per_s(value: float) -> str:
    return f"{size_text(int(value))}/s"


def _per_s(value: float) -> str:
    return f"{value:,.1f}/s" if value < 100 else f"{value:,.0f}/s"

"""Writes a run's results as JSON, which ``compare`` reads, and as Markdown tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, Limit, Spread, SuiteResult, Target

FORMAT = 1


class ReportError(Exception):
    """A file is not a report of these benchmarks."""


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all suites of one run, and the machine they ran on."""

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    started: str
    suites: tuple[SuiteResult, ...]

    @property
    def targets(self) -> list[Target]:
        """The targets of all suites, by acceptance letter."""
        return sorted((target for suite in self.suites for target in suite.targets), key=lambda target: target.mark)


def write_json(report: Report, path: Path) -> None:
    """Write the report with all samples and their summaries."""
    document = {
        "format": FORMAT,
        "started": report.started,
        "machine": report.machine,
        "settings": report.settings,
        "suites": [_suite_document(suite) for suite in report.suites],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Report:
    """Read a report.

    Raises:
        ReportError: the file is missing, is not a report, or has another format.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ReportError(f"{path} has format {document['format']}, this program reads {FORMAT}")
        suites = tuple(_suite_from(entry) for entry in document["suites"])
        return Report(document["machine"], document["settings"], document["started"], suites)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path} is not a report of `python -m benchmarks`: {error!r}") from error


def markdown(report: Report, machine_lines: Sequence[str]) -> str:
    """Return the whole report as Markdown."""
    parts = ["# Benchmarks", "", f"Run of {report.started}.", "", *(f"- {line}" for line in machine_lines), ""]
    if report.settings.get("reduced"):
        parts += ["Sizes are smaller than those the targets are stated for.", ""]
    for suite in report.suites:
        parts += [f"## {suite.name}", "", *figure_table(suite), ""]
        parts += [*(f"{remark}" for remark in suite.remarks), ""] if suite.remarks else []
        parts += [*_limit_lines(suite), ""]
    if report.targets:
        parts += ["## Targets", "", *target_table(report.targets), ""]
    return "\n".join(parts)


def figure_table(suite: SuiteResult) -> list[str]:
    """Return a table with one row for each figure."""
    rows = ["| figure | median (min-max) | limit | ratio (min-max) | note |", "|---|---|---|---|---|"]
    for figure in suite.figures:
        limit = with_unit(Spread.of(figure.limit.samples).median, figure.unit) if figure.limit else "-"
        ratio = _ranged(Spread.of(figure.ratios), "x") if figure.ratios else "-"
        rows.append(f"| {figure.name} | {_ranged(figure.spread, figure.unit)} | {limit} | {ratio} | {figure.note} |")
    return rows


def target_table(targets: Sequence[Target]) -> list[str]:
    """Return a table with one row for each target: its bound, what was measured, and whether it was met."""
    rows = ["| | target | bound | measured (min-max) | |", "|---|---|---|---|---|"]
    for target in targets:
        bound = f"{target.bound_kind} {with_unit(target.bound, target.unit)}"
        measured = _ranged(target.spread, target.unit)
        rows += [f"| {target.mark} | {target.text} | {bound} | {measured} | {verdict_text(target)} |"]
    return rows


def verdict_text(target: Target) -> str:
    """Return ``met`` or ``missed``, with doubts if there are any."""
    doubts = []
    if target.within_noise and target.verdict != "not judged":
        doubts.append("within noise")
    if target.reduced:
        doubts.append("smaller sizes")
    return target.verdict + (f" ({', '.join(doubts)})" if doubts else "")


def with_unit(value: float, unit: str) -> str:
    """Format a value with its unit; see `number`."""
    return f"{number(value)} {unit}"


def number(value: float) -> str:
    """Format a number with three significant digits or, if it has more, all digits before the point."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) >= 0.001 else f"{value:.2g}"


def _ranged(spread: Spread, unit: str) -> str:
    if spread.low == spread.high:
        return with_unit(spread.median, unit)
    return f"{with_unit(spread.median, unit)} ({number(spread.low)}-{number(spread.high)})"


def _limit_lines(suite: SuiteResult) -> list[str]:
    """Return a line for each limit, with its parts."""
    limits = {figure.limit.name: figure.limit for figure in suite.figures if figure.limit}
    lines = []
    for limit in limits.values():
        parts = ", ".join(f"{part} {number(seconds * 1e3)} ms" for part, seconds in limit.parts.items())
        lines.append(f"- limit: {limit.name}" + (f" ({parts})" if parts else ""))
    return lines


def _suite_document(suite: SuiteResult) -> dict[str, Any]:
    return {
        "name": suite.name,
        "seconds": suite.seconds,
        "remarks": suite.remarks,
        "figures": [_figure_document(figure) for figure in suite.figures],
        "targets": [
            asdict(target) | {"median": target.spread.median, "verdict": target.verdict} for target in suite.targets
        ],
    }


def _figure_document(figure: Figure) -> dict[str, Any]:
    summary: dict[str, Any] = {"spread": asdict(figure.spread)}
    if figure.ratios:
        summary |= {"ratios": figure.ratios, "ratio_spread": asdict(Spread.of(figure.ratios))}
    return asdict(figure) | summary


def _suite_from(entry: Mapping[str, Any]) -> SuiteResult:
    return SuiteResult(
        entry["name"],
        tuple(_figure_from(figure) for figure in entry["figures"]),
        tuple(_target_from(target) for target in entry["targets"]),
        tuple(entry["remarks"]),
        entry["seconds"],
    )


def _figure_from(entry: Mapping[str, Any]) -> Figure:
    found = entry["limit"]
    limit = Limit(found["name"], tuple(found["samples"]), found["parts"]) if found else None
    samples, chart = tuple(entry["samples"]), entry.get("chart", "")  # older reports have no charts
    return Figure(entry["name"], entry["unit"], samples, entry["better"], limit, entry["note"], chart)


def _target_from(entry: Mapping[str, Any]) -> Target:
    return Target(
        entry["mark"],
        entry["text"],
        entry["bound_kind"],
        entry["bound"],
        entry["unit"],
        tuple(entry["samples"]),
        entry["figure"],
        entry["reduced"],
        entry["needs_full_size"],
    )

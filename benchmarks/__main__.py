"""Command line: ``python -m benchmarks`` runs suites, ``python -m benchmarks compare A B`` compares runs."""

from __future__ import annotations

import argparse
import importlib
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from benchmarks import machine, ray_peer, report
from benchmarks.compare import Comparison, RatioOfMedians, compare_figures
from benchmarks.measure import Spread, SuiteResult
from benchmarks.progress import RunProgress
from benchmarks.session import QUICK, Session, Sizes

SUITES = {
    "engine": "engine",
    "grpc": "grpc_stream",
    "small-files": "small_files",
    "revise-sync": "revise_sync",
    "degraded": "degraded",
    "repair": "repair",
    "scale": "scale",
    "memory": "memory",
    "cluster": "cluster",
    "sandbox": "sandbox",
    "functions": "functions",
    "egress": "egress",
    "dns": "dns",
    "security": "security",
    "folders": "folders",
    "s3": "s3",
}
BUSY_LOAD = 0.5
TOUCHED_SHARE = 0.6
"""Fraction of the available memory to touch; the rest is left to other programs."""
PLAIN_COLUMNS = 150


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = _console()
    if words[:1] == ["compare"]:
        return _compare(console, words[1:])
    options = _parser().parse_args(words)
    logging.getLogger("storage").setLevel(logging.ERROR)  # volumes are lost on purpose here
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        with _directory(console, options.dir) as directory:
            return _run(console, options, directory)
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


def _console() -> Console:
    """Return a console that does not squeeze tables if the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_COLUMNS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures TaskWorker. Every figure stands beside the physical limit measured in the same run.",
        epilog="python -m benchmarks compare A.json B.json  shows two runs side by side. "
        "Example: python -m benchmarks --suite engine degraded --out results",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: all suites in a few minutes")
    parser.add_argument(
        "--suite", nargs="+", action="extend", choices=SUITES, metavar="NAME", help=f"only these: {', '.join(SUITES)}"
    )
    parser.add_argument(
        "--dir", type=Path, help="directory for the stores (default: a temporary one in this directory)"
    )
    parser.add_argument("--out", type=Path, help="directory for results.json, results.md and plots of each suite")
    parser.add_argument("--svg", action="store_true", help="write plots as SVG instead of PNG")
    parser.add_argument("--peers", action="store_true", help="measure other installed tools and clusters as well")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each measurement (default 5, quick 3)")
    parser.add_argument("--scale-files", type=int, metavar="N", help="files in the large store of the scale suite")
    parser.add_argument("--keep", action="store_true", help="keep the stores of the scale suite in --dir, and use them")
    parser.add_argument(
        "--ray",
        metavar="PYTHON",
        help="an interpreter that has Ray, measured beside functions (default: this one)",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="DIR",
        help="another checkout of this repository, whose pool the cluster suite measures in the same rounds",
    )
    return parser


def _run(console: Console, options: argparse.Namespace, directory: Path) -> int:
    found = machine.describe(directory)
    for line in found.lines():
        console.print(line, highlight=False)
    if found.load_at_start > BUSY_LOAD:
        console.print("[bold]The machine is busy with other work: expect wide spreads.[/bold]")
    sizes = _sizes(options)
    if sizes.reduced:
        console.print("Quick run: sizes are smaller than those the targets are stated for.")
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    with RunProgress(console) as progress:
        ray, before = ray_peer.interpreter(options.ray), options.before and options.before.resolve()
        session = Session(directory, sizes, progress, options.peers, options.keep, ray, before)
        _touch_memory(session)
        results = [_run_suite(console, name, session) for name in options.suite or SUITES]
    finished = report.Report(found.as_json(), asdict(sizes), started, tuple(filter(None, results)))
    _show_targets(console, finished)
    if options.out:
        _write(console, finished, found.lines(), options.out, ".svg" if options.svg else ".png")
    return 0 if all(results) else 1


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else Sizes()
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    if options.scale_files:
        reduced = sizes.reduced or options.scale_files < sizes.scale_files_many
        sizes = replace(sizes, scale_files_many=options.scale_files, reduced=reduced)
    return sizes


def _touch_memory(session: Session) -> None:
    session.progress.suite("all")
    session.progress.step("touching memory, so that the kernel has it at hand when it is measured")
    machine.touch_memory(min(session.sizes.touched_bytes, int(machine.available_memory() * TOUCHED_SHARE)))


def _run_suite(console: Console, name: str, session: Session) -> SuiteResult | None:
    """Run one suite and show its figures; return None if it failed, so that the other suites still run."""
    session.progress.suite(name)
    start, before = time.monotonic(), machine.ProcessorTimes.now()
    try:
        suite = importlib.import_module(f"benchmarks.suites.{SUITES[name]}")
        result: SuiteResult = suite.run(session)
    except Exception:
        console.print_exception()
        console.print(f"[red]{name} failed[/red]")
        return None
    session.progress.finish()
    others = before.share_of_others(machine.ProcessorTimes.now())
    remark = f"Other work, the kernel's own threads included, took {others:.0%} of the processors meanwhile."
    result = replace(result, seconds=time.monotonic() - start, remarks=(*result.remarks, remark))
    _show_figures(console, result)
    return result


def _show_figures(console: Console, suite: SuiteResult) -> None:
    table = Table(title=f"{suite.name} ({suite.seconds:.0f} s)", title_justify="left", title_style="bold")
    for heading in ("figure", "median", "min - max", "limit", "ratio", "min - max"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for figure in suite.figures:
        limit = report.with_unit(Spread.of(figure.limit.samples).median, figure.unit) if figure.limit else ""
        ratio = Spread.of(figure.ratios) if figure.ratios else None
        table.add_row(
            figure.name + (f"\n[dim]{figure.note}[/dim]" if figure.note else ""),
            report.with_unit(figure.spread.median, figure.unit),
            _range(figure.spread),
            limit,
            f"{report.number(ratio.median)}x" if ratio else "",
            _range(ratio) if ratio else "",
        )
    console.print(table)
    for remark in suite.remarks:
        console.print(remark, highlight=False)


def _show_targets(console: Console, finished: report.Report) -> None:
    table = Table(title="Targets", title_justify="left", title_style="bold")
    for heading in ("", "target", "bound", "measured", "min - max", ""):
        table.add_column(heading, justify="right" if heading in ("bound", "measured", "min - max") else "left")
    for target in finished.targets:
        style = {"met": "green", "missed": "red"}.get(target.verdict, "dim")
        table.add_row(
            target.mark,
            target.text,
            f"{target.bound_kind} {report.with_unit(target.bound, target.unit)}",
            report.with_unit(target.spread.median, target.unit),
            _range(target.spread),
            f"[{style}]{report.verdict_text(target)}[/{style}]",
        )
    if finished.targets:
        console.print(table)


def _write(
    console: Console, finished: report.Report, machine_lines: Sequence[str], directory: Path, suffix: str
) -> None:
    from benchmarks import plots

    directory.mkdir(parents=True, exist_ok=True)
    report.write_json(finished, directory / "results.json")
    (directory / "results.md").write_text(report.markdown(finished, machine_lines) + "\n", encoding="utf-8")
    drawn = [path for suite in finished.suites for path in plots.draw(suite, directory, suffix)]
    names = ["results.json", "results.md", *(path.name for path in drawn)]
    console.print(f"wrote {', '.join(names)} to {directory}", highlight=False)


def _compare(console: Console, words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description="Shows two runs side by side.")
    parser.add_argument("first", type=Path, help="results.json of the run to compare with")
    parser.add_argument("second", type=Path, help="results.json of the run in question")
    options = parser.parse_args(words)
    try:
        first, second = report.read_json(options.first), report.read_json(options.second)
    except report.ReportError as error:
        console.print(str(error), highlight=False)
        return 1
    _warn_of_differences(console, first, second)
    by_suite = ({suite.name: suite.figures for suite in run.suites} for run in (first, second))
    _show_comparisons(console, compare_figures(*by_suite))
    return 0


def _warn_of_differences(console: Console, first: report.Report, second: report.Report) -> None:
    for key in ("cpu", "cores", "kernel", "file_system", "python", "accelerator"):
        if first.machine.get(key) != second.machine.get(key):
            console.print(f"{key} differs: {first.machine.get(key)} and {second.machine.get(key)}", highlight=False)
    if first.settings != second.settings:
        console.print("the runs were made with different sizes or rounds", highlight=False)


def _show_comparisons(console: Console, comparisons: Sequence[Comparison]) -> None:
    table = Table(title="second / first, medians (range of single rounds)", title_justify="left")
    for heading in ("suite", "figure", "first", "second", "ratio", "of ratios to limit", "verdict"):
        table.add_column(heading, justify="right" if heading in ("first", "second") else "left")
    for one in comparisons:
        table.add_row(
            one.suite,
            one.name,
            report.with_unit(one.first.median, one.unit),
            report.with_unit(one.second.median, one.unit),
            _ratio(one.ratio),
            _ratio(one.against_limit) if one.against_limit else "",
            one.verdict,
        )
    console.print(table)


def _ratio(ratio: RatioOfMedians) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _range(spread: Spread) -> str:
    return f"{report.number(spread.low)} - {report.number(spread.high)}" if spread.low != spread.high else ""


@contextmanager
def _directory(console: Console, chosen: Path | None) -> Iterator[Path]:
    """Provide the directory for stores. The default one is removed at the end."""
    if chosen:
        chosen.mkdir(parents=True, exist_ok=True)
        directory = chosen.resolve()
    else:
        directory = Path(tempfile.mkdtemp(prefix=".benchmarks-", dir=Path.cwd()))
    if machine.in_memory(directory):
        kind = machine.file_system(directory)
        console.print(f"[bold]{directory} is on {kind}, without a disk: durable writes cost nothing here.[/bold]")
    try:
        yield directory
    finally:
        if not chosen:
            shutil.rmtree(directory, ignore_errors=True)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

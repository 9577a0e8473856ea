"""The command doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskworker.cli.exits import ExitCode
from taskworker.cli.session import DEFAULT_ADDRESS, Session
from taskworker.cli.text import one_line, plural


def doctor(
    session: Session,
    directory: Annotated[
        list[Path] | None,
        typer.Option(
            "--dir",
            help="Directory of a pool, worker or store, which may not exist yet; repeatable (default: where they are "
            "without --dir).",
            metavar="DIR",
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            help="Address that a server shall listen on, HOST:PORT; repeatable (default: those that they use without "
            "--listen).",
            metavar="ADDR",
        ),
    ] = None,
    functions: Annotated[
        bool, typer.Option("--functions/--no-functions", help="Whether functions shall run on this machine.")
    ] = True,
) -> None:
    """Look for what would keep pools, workers and clients from working on this machine, and say what to do.

    Nothing is changed. The exit code is 1 if there is a problem; warnings alone do not count.

    Examples:
        taskworker doctor
        taskworker doctor --dir /disk1/worker --listen 0.0.0.0:50052
        taskworker doctor --no-functions --json
    """
    from taskworker.cli.workers import DEFAULT_WORKER_ADDRESS
    from taskworker.doctor.examination import examine
    from taskworker.doctor.findings import Verdict
    from taskworker.worker.places import default_store

    directories = directory or [default_store("pool").parent]
    addresses = listen or [DEFAULT_ADDRESS, DEFAULT_WORKER_ADDRESS]
    marks = {Verdict.OK: "ok      ", Verdict.WARNING: "WARNING ", Verdict.PROBLEM: "PROBLEM "}
    found = []
    for one in examine(directories, addresses, functions=functions):
        found.append(one)
        if not session.terminal.as_json:
            advice = [f"         → {one_line(one.advice)}"] if one.advice else []
            session.terminal.lines(f"{marks[one.verdict]} {one_line(one.about)}: {one_line(one.text)}", *advice)
    problems, warnings = (sum(one.verdict is kind for one in found) for kind in (Verdict.PROBLEM, Verdict.WARNING))
    session.terminal.result(
        {
            "problems": problems,
            "warnings": warnings,
            "findings": [
                {"about": one.about, "verdict": one.verdict.value, "text": one.text, "advice": one.advice}
                for one in found
            ],
        },
        f"{plural(problems, 'problem')}, {plural(warnings, 'warning')}",
    )
    if problems:
        raise typer.Exit(ExitCode.FAILED)

"""The commands for functions: call, functions, deploy, undeploy, logs."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from taskworker.cli.documents import document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.text import json_text, one_line, plural, size_text, time_text

if TYPE_CHECKING:
    from taskworker.calls.bundle import PackedPackage
    from taskworker.client.deploying import Deployment
    from taskworker.client.functions import (
        Deployed,
        FunctionClient,
        FunctionHost,
        FunctionStatus,
        FunctionVersion,
        LogLine,
    )

_ID_SHOWN = 12
_SUMMARY_SHOWN = 8
_SHOWN_CHARS = 200
_LOG_INDENT = 29
_OWN = "app/"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

FunctionName = Annotated[str, typer.Argument(help="The function's name.", metavar="FUNCTION")]


def call(
    session: Session,
    function: FunctionName,
    args: Annotated[
        list[str] | None, typer.Argument(help="Arguments: JSON values; a bare word is a string.", metavar="ARG")
    ] = None,
    kw: Annotated[
        list[str] | None, typer.Option("--kw", help="An argument by its name; repeatable.", metavar="NAME=VALUE")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="End the call after this many seconds.", metavar="SECONDS", min=0.001)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="Download the file that the function returns (worker.result_file) to this file or directory (DIR/).",
            metavar="OUT",
        ),
    ] = None,
) -> None:
    """Call a function of the pool, and print its result: a string as it is, anything else as JSON.

    The items of a generator are printed one by one as they arrive.

    Examples:
        taskworker call calculate 3 4
        taskworker call report --kw month=2026-11 --timeout 60
        taskworker call thumbnail cat.png -o small.png
    """
    from taskworker.client import Client
    from taskworker.client.function_calls import value_of

    named = dict(_pair("--kw", item, "NAME=VALUE") for item in kw or ())
    with Client(session.pool_address()) as client:
        if output is not None:
            told = client.call_texts(function, args or (), named, user_id=session.user, timeout_s=timeout)
            from taskworker.cli.files import save_version

            save_version(session, *_returned_file(told), output)
            return
        for item in client.stream_texts(function, args or (), named, user_id=session.user, timeout_s=timeout):
            value = value_of(item)
            if isinstance(value, str) and not session.terminal.as_json:
                session.terminal.lines(value)
            else:
                session.terminal.document(value)


def _returned_file(result: str) -> tuple[str, str]:
    """File id and version id that a function returned."""
    from taskworker.client.function_calls import value_of

    told = value_of(result)
    if isinstance(told, dict):
        match told.get("file_id"), told.get("version_id"):
            case str(file_id), str(version_id):
                return file_id, version_id
    raise Failure(
        f"-o needs a function that returns a file (worker.result_file); it returned {one_line(result[:_SHOWN_CHARS])}"
    )


def _pair(option: str, item: str, form: str) -> tuple[str, str]:
    name, separator, value = item.partition("=")
    if not separator or not name:
        raise Failure(f"{option} {item!r} is not {form}", ExitCode.USAGE)
    return name, value


def deploy(
    session: Session,
    name: Annotated[str, typer.Argument(help="The name by which it is called.", metavar="NAME")],
    entry: Annotated[str, typer.Argument(help="A module, and the function in it.", metavar="MODULE:FUNCTION")],
    directory: Annotated[
        Path, typer.Option("--dir", help="Directory of the module.", metavar="DIR", file_okay=False, exists=True)
    ] = Path(),
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Further files of that directory: a name, a directory, or a pattern; repeatable.", metavar="PATTERN"
        ),
    ] = None,
    requirements: Annotated[
        Path | None,
        typer.Option(
            help="A requirements file; packages come from wheels.", metavar="FILE", dir_okay=False, exists=True
        ),
    ] = None,
    limits: Annotated[
        str,
        typer.Option(help="Limits of one call: memory=128MiB,cpu=5,wall=60,threads=8,disk=64MiB,...", metavar="LIMITS"),
    ] = "",
    cache: Annotated[
        float,
        typer.Option(help="Keep results this long, and return them for the same arguments.", metavar="SECONDS", min=0),
    ] = 0.0,
    concurrency: Annotated[int, typer.Option(help="Calls that run at once in the pool.", metavar="N", min=1)] = 32,
    queue: Annotated[int, typer.Option(help="Further calls that may wait.", metavar="N", min=0)] = 256,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting that the function finds in worker.config; repeatable. Not for secrets.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    isolation: Annotated[
        Literal["call", "user"],
        typer.Option(help="call: a process for each call. user: a process serves one user's calls, one after another."),
    ] = "call",
    process_calls: Annotated[
        int, typer.Option(help="With --isolation user: calls that a process serves at most.", metavar="N", min=1)
    ] = 1000,
    process_seconds: Annotated[
        float,
        typer.Option(help="With --isolation user: for how long a process serves calls.", metavar="SECONDS", min=0.001),
    ] = 300.0,
    needs: Annotated[
        list[str] | None,
        typer.Option(help="A label that a worker must have to run it; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Do not run a call again if its worker was lost during it.", show_default=False),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only list what would be packed, and try to import it.", show_default=False),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --dry-run: list the files of packages, too.", show_default=False)
    ] = False,
) -> None:
    """Deploy a function, with its module and requirements, as the newest version of NAME.

    The modules and packages that it imports from the same directory are deployed with it.

    Examples:
        taskworker deploy thumbnail images:thumbnail
        taskworker deploy report reports.monthly:make --requirements requirements.txt --limits memory=512MiB,wall=120
    """
    from taskworker.calls.labels import labels_from_texts
    from taskworker.calls.spec import FunctionSpec, limits_from_text
    from taskworker.client import deploying
    from taskworker.client.deploying import Source
    from taskworker.client.functions import FunctionClient

    spec = FunctionSpec(
        name=name,
        entry=entry,
        idempotent=not once,
        cache_ttl_s=cache,
        concurrency=concurrency,
        queue=queue,
        limits=limits_from_text(limits),
        isolation=isolation,
        needs=labels_from_texts(needs or []),
        process_calls=process_calls,
        process_s=process_seconds,
        config=dict(_pair("--set", item, "KEY=VALUE") for item in settings or ()),
    )
    source = Source(directory, include or (), requirements)
    with FunctionClient(session.pool_address()) as client:
        deployment = deploying.deploy(client, spec, source, user_id=session.user, dry_run=dry_run)
    if dry_run:
        _show_dry_run(session, deployment, all_files=verbose)
    else:
        _show_deployment(session, deployment)
    if deployment.not_imported:
        why = "no worker can run it yet" if deployment.unable else deployment.not_imported
        session.terminal.note(f"no worker has tried to import it: {why}; see `taskworker functions workers`")


def _show_dry_run(session: Session, found: Deployment, *, all_files: bool) -> None:
    packages = () if all_files else found.packages
    session.terminal.result(
        document(found),
        *(
            f"{size_text(size):>9}  {one_line(path)}"
            for path, size in found.files.items()
            if all_files or path.startswith(_OWN)
        ),
        *(f"{size_text(one.size):>9}  {_package_text(one)}" for one in packages),
        f"{one_line(found.function)} would be {plural(len(found.files), 'file')}, {size_text(found.size)}"
        + (f", with {plural(len(found.packages), 'package')}" if found.packages else ""),
        *(f"worker.config has {one_line(key)}={one_line(value)}" for key, value in sorted(found.config.items())),
        *_where_lines(found),
    )


def _package_text(one: PackedPackage) -> str:
    what = f"package {one_line(one.package)}, {plural(one.files, 'file')}"
    return f"{what}, for {one.platform}" if one.platform else what


def _show_deployment(session: Session, found: Deployment) -> None:
    how = "is deployed" if found.changed else "was deployed like this already"
    packages = len(found.requirements) + max(map(len, found.platforms.values()), default=0)
    more = f" with {plural(packages, 'package')}" if packages else ""
    session.terminal.result(
        document(found),
        f"{one_line(found.function)} {how}: version {found.version_id[:_ID_SHOWN]}, {size_text(found.size)}{more}",
        *_where_lines(found),
    )


def _where_lines(found: Deployment) -> list[str]:
    """Which workers can run it, unless all can."""
    if not found.platforms and not found.unable:
        return []
    return [
        *(
            f"for {tag}" + (f": {', '.join(packages)}" if packages else "")
            for tag, packages in sorted(found.platforms.items())
        ),
        f"runs on {', '.join(map(one_line, found.able)) or 'no worker yet'}",
        *(f"not on {one_line(worker)}, which {one_line(why)}" for worker, why in sorted(found.unable.items())),
    ]


def _show_rollback(session: Session, deployed: Deployed) -> None:
    how = "is rolled back" if deployed.changed else "was like this already"
    session.terminal.result(
        document(deployed), f"{deployed.function} {how}: version {deployed.version_id[:_ID_SHOWN]} is the newest"
    )


def undeploy(session: Session, function: FunctionName) -> None:
    """Remove a deployed function and its versions from the pool.

    Examples:
        taskworker undeploy report
    """
    from taskworker.client.functions import FunctionClient

    with FunctionClient(session.pool_address()) as client:
        client.undeploy(function)
    session.terminal.result({"function": function, "deployed": False}, f"{one_line(function)} is no longer deployed")


def functions(
    session: Session,
    what: Annotated[
        Literal["list", "log", "rollback", "workers"],
        typer.Argument(
            help="list: all functions. log: the versions of one. rollback: make an earlier version the newest. "
            "workers: who runs functions."
        ),
    ] = "list",
    function: Annotated[
        str | None, typer.Argument(help="log, rollback: the function's name.", metavar="FUNCTION")
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            help="rollback: the version, or the first digits of its id (default: the one before).", metavar="VERSION"
        ),
    ] = None,
) -> None:
    """List the pool's functions with statistics of their calls, list the versions of one, or roll one back.

    Examples:
        taskworker functions
        taskworker functions log report
        taskworker functions rollback report --version 3fa4
        taskworker functions workers
    """
    from taskworker.client.functions import FunctionClient

    if (what in ("list", "workers")) != (function is None):
        raise Failure(f"`taskworker functions {what}` {'takes no' if function else 'needs a'} FUNCTION", ExitCode.USAGE)
    with FunctionClient(session.pool_address()) as client:
        if what == "workers":
            hosts = client.hosts()
            session.terminal.result([document(one) for one in hosts], *_host_lines(hosts))
        elif function is None:
            found = client.functions()
            session.terminal.result([document(one) for one in found], *function_lines(found))
        elif what == "log":
            _show_history(session, client, function)
        else:
            _show_rollback(session, client.roll_back(function, version or "", user_id=session.user))


def _host_lines(hosts: list[FunctionHost]) -> list[str]:
    from taskworker.calls.labels import text_of

    if not hosts:
        return ["no workers run functions; start one with `taskworker worker`"]
    width = max(14, *(len(one_line(host.worker_id)) for host in hosts))
    platforms = max(8, *(len(one_line(host.platform)) for host in hosts))
    return [
        f"{'RUNS FUNCTIONS':{width}}  {'NOW':>4}  {'DATA':4}  {'DEPLOYED':8}  {'PLATFORM':{platforms}}  LABELS",
        *(
            f"{one_line(host.worker_id):{width}}  {host.running:>4}  {'yes' if host.has_volume else 'no':4}  "
            f"{'yes' if host.hosts_deployed else 'no':8}  {one_line(host.platform):{platforms}}  "
            f"{one_line(text_of(host.labels))}".rstrip()
            for host in hosts
        ),
    ]


def host_summary(hosts: list[FunctionHost]) -> list[str]:
    """A section of a pool's status: the workers that hold no data, and those with labels."""
    of_note = [host for host in hosts if host.labels or not host.has_volume]
    return ["", *_host_lines(of_note)] if of_note else []


def function_lines(found: list[FunctionStatus]) -> list[str]:
    """The functions as a table, at most 100 columns wide if their names are short."""
    if not found:
        return ["no functions yet; deploy one with `taskworker deploy NAME MODULE:FUNCTION`"]
    width = max(8, *(len(one_line(one.function)) for one in found))
    return [
        f"{'FUNCTION':{width}}  {'VERSION':12}  {'CALLS':>7}  {'ERRORS':>6}  {'RATE':>6}  {'P50':>7}  {'P95':>7}  "
        f"{'P99':>7}  {'NOW':>5}  {'WARM':>9}  ON",
        *(_function_line(one, width) for one in found),
    ]


def _function_line(one: FunctionStatus, width: int) -> str:
    now = f"{one.running}+{one.waiting}" if one.waiting else str(one.running)
    return (
        f"{one_line(one.function):{width}}  {one.version_id[:_ID_SHOWN] or 'of workers':12}  {_count(one.calls):>7}  "
        f"{_count(one.errors):>6}  {_rate(one.rate):>6}  {_ms(one.p50_ms):>7}  {_ms(one.p95_ms):>7}  "
        f"{_ms(one.p99_ms):>7}  {now:>5}  {size_text(sum(warm.memory_bytes for warm in one.warm)):>9}  "
        f"{len(one.workers)}"
    )


def function_summary(found: list[FunctionStatus]) -> list[str]:
    """A section of a pool's status: its busiest functions."""
    if not found:
        return []
    busiest = sorted(found, key=lambda one: (-one.rate, -one.calls, one.function))[:_SUMMARY_SHOWN]
    rest = len(found) - len(busiest)
    return [
        "",
        *function_lines(sorted(busiest, key=lambda one: one.function)),
        *([f"and {plural(rest, 'function')} more; see `taskworker functions`"] if rest else []),
    ]


def _count(count: int) -> str:
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:,.1f} M"


def _rate(rate: float) -> str:
    return f"{rate:.1f}/s" if rate < 100 else f"{rate:,.0f}/s"


def _ms(milliseconds: float) -> str:
    if not milliseconds:  # there were no calls
        return "-"
    if milliseconds < 100:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _show_history(session: Session, client: FunctionClient, function: str) -> None:
    versions = client.history(function)
    session.terminal.listing(
        "VERSION       DEPLOYED                  SIZE  BY", ((document(one), _version_line(one)) for one in versions)
    )


def _version_line(one: FunctionVersion) -> str:
    who = one_line(one.deployed_by)
    return f"{one.version_id[:_ID_SHOWN]}  {time_text(one.deployed_ms)}  {size_text(one.size):>9}  {who}"


def logs(
    session: Session,
    function: Annotated[
        str, typer.Argument(help="The function's name; not needed with --call.", metavar="FUNCTION")
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep showing new lines until Ctrl-C.", show_default=False)
    ] = False,
    since: Annotated[
        str,
        typer.Option(
            help="Only lines since then: an age (90s, 15m, 2h, 3d) or a time (2026-11-28T06:00).", metavar="AGE"
        ),
    ] = "",
    tail: Annotated[int | None, typer.Option(help="Only the last N lines.", metavar="N", min=0)] = None,
    call_id: Annotated[
        str,
        typer.Option("--call", help="Only the call with this id, or with an id that begins with this.", metavar="ID"),
    ] = "",
) -> None:
    """Show what the calls of a function printed and logged, and the errors they ended with.

    Examples:
        taskworker logs report
        taskworker logs report --tail 20 --follow
        taskworker logs report --since 2h
        taskworker logs --call 3fa4c1d2
    """
    from taskworker.client.functions import FunctionClient

    with FunctionClient(session.pool_address()) as client:
        none = True
        for line in client.logs(function, follow=follow, since_ms=_since_ms(since), tail=tail, call_id=call_id):
            none = False
            if session.terminal.as_json:
                session.terminal.lines(json_text(document(line)))
            else:
                session.terminal.lines(*_log_lines(line))
        if none and function and all(known.function != function for known in client.functions()):
            raise Failure(
                f"there is no function {one_line(function)}, and no log of one with this name", ExitCode.NOT_FOUND
            )
    if none:
        which = one_line(function) if function else "this id"
        session.terminal.note(f"the log has nothing of {which}: no output, and no errors")


def _since_ms(text: str) -> int:
    """Convert an age or a time to ms since 1970; 0 if empty."""
    if not text:
        return 0
    age = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if age is not None:
        return max(0, int((time.time() - int(age[1]) * _SECONDS[age[2]]) * 1000))
    try:
        return max(0, int(datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError):
        raise Failure(
            f"--since {text!r}: write an age as 90s, 15m, 2h or 3d, or a time as 2026-11-28T06:00", ExitCode.USAGE
        ) from None


def _log_lines(line: LogLine) -> list[str]:
    """A line of the log; the frames of an error follow indented, so that they cannot be taken for log lines."""
    mark = {"stdout": " ", "stderr": "!"}.get(line.stream, "*")
    first, *frames = (line.text.splitlines() or [""]) if line.stream == "event" else [line.text]
    return [
        f"{time_text(line.time_ms)} {line.call_id[:8]:8} {mark} {one_line(first)}",
        *(f"{'':{_LOG_INDENT}}{mark}   {one_line(frame.strip())}" for frame in frames),
    ]

"""Declares the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from taskworker.cli import demo, egress, files, functions, names, pool_status, pools, secrets, serve, sync, upkeep
from taskworker.cli.exits import ExitCode
from taskworker.cli.session import (
    DebugOption,
    JsonOption,
    PoolOption,
    Settings,
    StoreOption,
    UserOption,
    drop_output,
    with_session,
)
from taskworker.cli.terminal import Terminal

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 data loss, 6 unavailable.",
)

_PANELS = {
    "Files": (files.push, files.get, files.ls, files.log, files.stat, files.revise, sync.sync, files.rm),
    "The store": (upkeep.status, upkeep.scrub, upkeep.repair, upkeep.collect, upkeep.rebuild),
    "Functions": (functions.call, functions.functions, functions.deploy, functions.undeploy, functions.logs),
    "The pool": (pool_status.layout, pool_status.drain, names.resolve),
    "Running": (pools.up, pools.pool, pools.worker, serve.serve, demo.demo),
}


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"taskworker {version('taskworker')}")
        except PackageNotFoundError:
            typer.echo("taskworker, run from its source without being installed")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    store: StoreOption = None,
    pool: PoolOption = None,
    user: UserOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Keep files in a versioned, erasure-coded store: in a directory here, or on a server."""
    context.obj = Settings(store=store, pool=pool, user=user, json=json, debug=debug)


def run() -> int:
    """Run the command that the process's arguments name; answer the exit code."""
    try:
        return app(prog_name="taskworker", standalone_mode=False) or ExitCode.OK
    except typer.TyperException as error:
        problem = error.format_message()
        if problem:  # it is empty when help was shown instead
            command = getattr(getattr(error, "ctx", None), "command_path", "taskworker")
            Terminal(as_json=False).error(f"{problem.rstrip('.')}; see `{command} --help`")
        return error.exit_code
    except typer.Abort:
        return ExitCode.FAILED
    except OSError as error:  # help and the version are written outside of a session
        drop_output()
        if isinstance(error, BrokenPipeError):
            return ExitCode.PIPE_CLOSED
        Terminal(as_json=False).error(f"standard output: {error.strerror or error}")
        return ExitCode.FAILED


for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(with_session(_command))

app.add_typer(secrets.app, name="secret", help="Secrets, granted to functions.", rich_help_panel="Functions")
app.add_typer(egress.app, name="egress", rich_help_panel="Functions")

"""Declares the commands."""

from __future__ import annotations

import sys
from collections.abc import Collection
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Annotated

import typer

from taskworker import __version__
from taskworker.cli.exits import ExitCode
from taskworker.cli.help import Command, Group
from taskworker.cli.plain import plain_command
from taskworker.cli.session import (
    DebugOption,
    JsonOption,
    KeyFileOption,
    PoolOption,
    Settings,
    StoreOption,
    UserOption,
    run_with,
    with_session,
)
from taskworker.cli.streams import drop_output
from taskworker.cli.terminal import Terminal

_PANELS = {
    "Files": {
        "push": "files",
        "get": "files",
        "ls": "files",
        "log": "files",
        "stat": "files",
        "revise": "files",
        "sync": "sync",
        "rm": "removing",
        "mount": "mount",
    },
    "The store": dict.fromkeys(("status", "scrub", "repair", "collect", "rebuild"), "maintenance")
    | {"snapshot": "snapshots", "rotate-key": "maintenance", "rotate-own-key": "own_key", "shred": "shredding"},
    "Functions": dict.fromkeys(("call", "functions", "deploy", "undeploy", "logs"), "functions"),
    "The pool": dict.fromkeys(("layout", "drain", "forget", "encrypt"), "pool_status")
    | {"resolve": "names"}
    | {"worker-token": "joining", "worker-deny": "joining", "audit": "audit"},
    "Users": {"login": "contexts", "share": "sharing", "unshare": "sharing", "shares": "sharing"},
    "Running": {"up": "pools", "pool": "pools", "worker": "workers", "serve": "serve", "demo": "demo"}
    | {"ui": "ui", "doctor": "doctor", "bench": "bench"},
}
"""The commands in the order of the help, each with the module of this package that implements it."""

_GROUPS = (
    {"secret": "secrets", "egress": "egress", "context": "contexts", "user": "users", "token": "tokens"}
    | {"link": "sharing"}
    | {"authority": "authorities"}
    | {"folder": "folder", "gateway": "gateways"}
)
"""Groups of commands, each with the module that defines its ``app``."""

_PANEL_OF_GROUP = {"folder": "Files", "secret": "Functions", "egress": "Functions", "gateway": "Running"}
"""Where the help shows groups; the others are among what is for users."""

_MODULES = {command: module for commands in _PANELS.values() for command, module in commands.items()}
_ALL = frozenset(_GROUPS).union(_MODULES)
_HELP = frozenset(("-h", "--help"))
_AFTER_WORKER = frozenset(("token", "deny"))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"taskworker {__version__}")
        raise typer.Exit


def _global_options(
    context: typer.Context,
    store: StoreOption = None,
    pool: PoolOption = None,
    user: UserOption = None,
    key_file: KeyFileOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Keep files in a versioned, erasure-coded store: in a directory here, or on a server."""
    context.obj = Settings(store=store, pool=pool, user=user, json=json, debug=debug, key_file=key_file)


def app_for(arguments: Collection[str]) -> typer.Typer:
    """The application, with the commands that these arguments may name, otherwise all commands.

    Declaring all commands takes 30 ms, a sixth of the time of a short command. An option's value that happens to be
    the name of a command does no harm: one more command is declared.
    """
    app = typer.Typer(
        cls=Group,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 data loss, 6 unavailable, "
        "130 interrupted, 141 broken pipe, 143 terminated.",
    )
    app.callback()(_global_options)
    named = _ALL.intersection(arguments)
    meant = named if named and _HELP.isdisjoint(arguments) else _ALL
    for panel, commands in _PANELS.items():
        for command in filter(meant.__contains__, commands):
            function = getattr(_module(_MODULES[command]), command.replace("-", "_"))
            app.command(command, cls=Command, rich_help_panel=panel)(with_session(function))
    for group in filter(meant.__contains__, _GROUPS):
        app.add_typer(
            _module(_GROUPS[group]).app,
            name=group,
            rich_help_panel=_PANEL_OF_GROUP.get(group, "Users"),
        )
    return app


def _module(name: str) -> ModuleType:
    return import_module(f"taskworker.cli.{name}")


def _joined(arguments: list[str]) -> list[str]:
    """Make ``worker token`` and ``worker deny`` one word, as ``worker`` alone is a command of its own."""
    for at, (first, second) in enumerate(pairwise(arguments)):
        if first == "worker" and second in _AFTER_WORKER:
            return [*arguments[:at], f"worker-{second}", *arguments[at + 2 :]]
    return arguments


def run() -> int:
    """Run the command named by the process's arguments, and return its exit code."""
    arguments = _joined(sys.argv[1:])
    try:
        plain = plain_command(arguments)
        if plain is not None:
            run_with(plain.settings, getattr(_module(_MODULES[plain.name]), plain.name), name=plain.name)
            return ExitCode.OK
        return app_for(arguments)(arguments, prog_name="taskworker", standalone_mode=False) or ExitCode.OK
    except typer.Exit as ended:
        return ended.exit_code
    except typer.TyperException as error:
        problem = error.format_message()
        if problem:  # it is empty when help was shown instead
            command = getattr(getattr(error, "ctx", None), "command_path", "taskworker")
            Terminal(as_json=False).error(_with_hint(problem, f"`{command} --help`"))
        return error.exit_code
    except typer.Abort:
        return ExitCode.FAILED
    except SystemExit as ended:  # rich ends the process if nobody reads the help that it prints
        if isinstance(ended.__context__, BrokenPipeError):
            return ExitCode.PIPE_CLOSED
        raise
    except OSError as error:  # help and the version are printed without a session
        drop_output()
        if isinstance(error, BrokenPipeError):
            return ExitCode.PIPE_CLOSED
        Terminal(as_json=False).error(f"standard output: {error.strerror or error}")
        return ExitCode.FAILED


def _with_hint(problem: str, where: str) -> str:
    """What is wrong with a command line, and where to read how it would be right."""
    said = problem.replace(": Value error, ", ": ", 1).rstrip(".")
    return f"{said} See {where}" if said.endswith("?") else f"{said}; see {where}"

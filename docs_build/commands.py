"""Generates the reference of the command line from the Typer commands."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import typer.core
import typer.main

from docs_build.markdown import code, escaped, table
from taskworker.cli.app import app_for

COMMON = "Options of every command"
"""The title of the options that all commands have, in a command's help."""
_PROGRAM = "taskworker"
_EXAMPLES = "Examples:"
_EXPONENTS_FROM = 1e6  # where the shortest form of a float has one


@dataclass(frozen=True, slots=True)
class Described:
    """A command of the program, or of one of its groups."""

    path: str
    panel: str
    command: Any

    @property
    def parameters(self) -> list[Any]:
        """Its arguments and options, except hidden ones and --help."""
        known = self.command.get_params(typer.Context(self.command))
        return [one for one in known if not getattr(one, "hidden", False) and one.name != "help"]

    @property
    def options(self) -> list[Any]:
        """Its own options."""
        return [one for one in self.parameters if _is_option(one) and _panel_of(one) != COMMON]


@functools.cache  # pages need it some twenty times
def commands() -> list[Described]:
    """All commands, including those of groups, in the order of the program's help."""
    found: list[Described] = []
    for name, command in typer.main.get_command(app_for(())).commands.items():  # type: ignore[attr-defined]
        panel = command.rich_help_panel
        members = getattr(command, "commands", None)
        if members is None:
            found.append(Described(f"{_PROGRAM} {name}", panel, command))
        else:
            found += [
                Described(f"{_PROGRAM} {name} {inner}", f"{_PROGRAM} {name}", members[inner]) for inner in members
            ]
    return found


def sections(panel: str) -> str:
    """The reference of all commands of a group, or of a panel of the program's help."""
    found = [section(one) for one in commands() if one.panel == panel]
    if not found:
        raise ValueError(f"no command is in the panel or group {panel!r}")
    return "\n\n".join(found)


def overview() -> str:
    """All commands, each with a sentence that says what it does."""
    rows = [[code(one.path), escaped(_paragraphs(one)[0].partition(". ")[0].rstrip("."))] for one in commands()]
    return table(["command", "what it does"], rows)


def section(one: Described) -> str:
    """One command."""
    arguments = [each for each in one.parameters if not _is_option(each)]
    usage = " ".join([one.path, *(["[OPTIONS]"] if one.options else []), *(_usage(each) for each in arguments)])
    parts = [f"## {one.path}", f"```text\n{usage}\n```", *_body(_paragraphs(one))]
    if any(each.help for each in arguments):
        parts.append(table(["argument", "meaning"], ([code(_metavar(each)), _meaning(each)] for each in arguments)))
    if one.options:
        parts.append(option_table(one.options))
    return "\n\n".join(parts)


def options_of(path: str) -> str:
    """The table of a command's own options."""
    return option_table(next(one for one in commands() if one.path == path).options)


def common_options() -> str:
    """The table of the options that every command has."""
    parameters = commands()[0].parameters
    return option_table([one for one in parameters if _is_option(one) and _panel_of(one) == COMMON])


def option_table(options: Sequence[Any]) -> str:
    """A table of options: their values, their meaning and their defaults."""
    rows = [[code(_spelling(one)), _meaning(one), code(_default(one)) if _default(one) else ""] for one in options]
    return table(["option", "meaning", "default"], rows)


def _paragraphs(one: Described) -> list[str]:
    return textwrap.dedent(one.command.help or "").strip().split("\n\n")


def _body(paragraphs: Sequence[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        if paragraph.startswith(_EXAMPLES):
            lines = [f"$ {line.strip()}" for line in paragraph.splitlines()[1:]]
            yield "\n".join(["```console", *lines, "```"])
        else:
            yield escaped(paragraph)


def _is_option(parameter: Any) -> bool:
    return str(parameter.param_type_name) == "option"


def _panel_of(parameter: Any) -> str | None:
    return getattr(parameter, "rich_help_panel", None)


def _metavar(parameter: Any) -> str:
    """The placeholder for its value, or the values that it may have."""
    if parameter.metavar:
        return str(parameter.metavar)
    return str(parameter.display_type(typer.Context(typer.core.TyperCommand(None)))).strip("<>")


def _usage(argument: Any) -> str:
    shown = _metavar(argument) + ("..." if argument.nargs < 0 else "")
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _spelling(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len)) + "".join(f" / {name}" for name in option.secondary_opts)
    return names if option.is_flag else f"{names} {_metavar(option)}"


def _meaning(parameter: Any) -> str:
    return escaped(parameter.help or "")


def _default(option: Any) -> str:
    value = option.default
    if option.is_flag:
        return str(option.opts[0]) if value and option.secondary_opts else ""
    if value is None or callable(value):
        return ""
    return f"{value:g}" if isinstance(value, float) and value < _EXPONENTS_FROM else str(getattr(value, "value", value))

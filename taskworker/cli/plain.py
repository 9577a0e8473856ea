"""Recognizes simple command lines: a command with only options that every command has.

Setting up typer's parser takes a third of the processor time of a short command. Command lines accepted here mean the
same to typer; everything else, and every mistake, is left to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from taskworker.cli.session import Settings

_COMMANDS = frozenset(("status",))
_VALUES = frozenset(("pool", "user"))
_FLAGS = frozenset(("json", "debug"))
_COMPLETION = "_TASKWORKER_COMPLETE"


class PlainCommand(NamedTuple):
    """A command without arguments of its own, and its settings."""

    name: str
    settings: Settings


def plain_command(arguments: Sequence[str]) -> PlainCommand | None:
    """The command that these arguments name; None if they need the full parser."""
    at = next((at for at, argument in enumerate(arguments) if argument in _COMMANDS), None)
    if at is None or _COMPLETION in os.environ:
        return None
    before, after = _settings(arguments[:at]), _settings(arguments[at + 1 :])
    if before is None or after is None:
        return None
    return PlainCommand(arguments[at], before.overridden_by(after))


def _settings(arguments: Sequence[str]) -> Settings | None:
    given: dict[str, str | bool] = {}
    left = list(reversed(arguments))
    while left:
        option, equals, value = left.pop().partition("=")
        name = option.removeprefix("--")
        if name == option or name in given:
            return None
        if name in _FLAGS and not equals:
            given[name] = True
        elif name in _VALUES:
            value = value if equals or not left else left.pop()
            if not value or value.startswith("-"):
                return None
            given[name] = value
        else:
            return None
    return Settings(**given)  # type: ignore[arg-type]

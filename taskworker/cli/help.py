"""Commands whose help shows the name of an option's value, and nothing for options without values."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from taskworker.cli.values import convert_lightly


class Command(TyperCommand):
    """A command whose help shows no Python types, and whose values are converted lightly."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's parameters, ready to be shown and given."""
        return _prepared(super().get_params(ctx))


class Group(TyperGroup):
    """The same for a group of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The group's own parameters, ready to be shown and given."""
        return _prepared(super().get_params(ctx))


def _prepared(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        convert_lightly(parameter)
        if isinstance(parameter, TyperArgument) or parameter.is_flag:
            parameter.display_type_rich = _nothing
    return parameters


def _nothing(ctx: typer.Context) -> str | None:
    return None

"""Converts simple values of options and arguments without pydantic, where the result is surely the same.

typer converts every value with pydantic, and loading that takes a third of the processor time of a short command. For
everything but what is recognized here, and for every mistake, the value is left to typer, which loads it then.
"""

from __future__ import annotations

import os
import re
import stat
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

UNSURE = object()
"""Returned instead of a value if typer has to decide."""
_NUMBERS = {int: re.compile(r"0|[1-9][0-9]{0,8}"), float: re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?")}
_FLAGS_OF_PATHS = ("writable", "resolve_path", "allow_dash", "path_type")


class ConvertedLightly:
    """Stands for typer's converter of a parameter's value, and calls it only if the value is not a simple one."""

    def __init__(self, parameter: Any) -> None:
        self._descriptor = parameter.type_descriptor
        self._several = parameter.multiple or parameter.nargs == -1
        self._typers_own = parameter.get_runtime_param

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value as the command takes it.

        Raises:
            typer.BadParameter: typer refuses the value.
        """
        converted = self._converted(value)
        return self._typers_own().coerce(value, param=param, ctx=ctx) if converted is UNSURE else converted

    def _converted(self, value: Any) -> Any:
        if value is None:
            return () if self._several else None
        kind, rules = self._descriptor.annotation, self._descriptor.parameter_info
        if rules.parser is not None or rules.clamp:
            return UNSURE
        if not self._several:
            return _simple(kind, value, rules)
        if get_origin(kind) is not list or not isinstance(value, list | tuple):
            return UNSURE
        (of_each,) = get_args(kind)
        every = [_simple(of_each, one, rules) for one in value]
        return UNSURE if any(one is UNSURE for one in every) else every


def convert_lightly(parameter: Any) -> None:
    """Let a parameter of a command do without pydantic where it can.

    The parameters of another version of typer may have other parts; they are left as they are.
    """
    ready = "get_runtime_param" in vars(parameter)
    if not ready and hasattr(parameter, "type_descriptor") and hasattr(parameter, "get_runtime_param"):
        converted = ConvertedLightly(parameter)
        parameter.get_runtime_param = lambda: converted


def _simple(kind: Any, value: Any, rules: Any) -> Any:
    if kind is Path:
        return _path(value, rules) if isinstance(value, str | Path) else UNSURE
    if kind in _NUMBERS:
        return _number(kind, value, rules)
    if kind is str:
        simple = type(value) is str
    elif get_origin(kind) is Literal:
        simple = type(value) is str and value in get_args(kind)
    else:
        simple = isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, kind)
    return value if simple else UNSURE


def _number(kind: type[int] | type[float], value: Any, rules: Any) -> Any:
    if type(value) is str and _NUMBERS[kind].fullmatch(value):
        value = kind(value)
    elif kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        return UNSURE
    within = (rules.min is None or value >= rules.min) and (rules.max is None or value <= rules.max)
    return value if within else UNSURE


def _path(value: str | Path, rules: Any) -> Any:
    if not str(value).isprintable() or any(getattr(rules, flag) for flag in _FLAGS_OF_PATHS):
        return UNSURE
    path = Path(value)
    try:
        mode = path.stat().st_mode
    except OSError:
        return UNSURE if rules.exists else path
    refused = (not rules.file_okay and stat.S_ISREG(mode)) or (not rules.dir_okay and stat.S_ISDIR(mode))
    return UNSURE if refused or (rules.readable and not os.access(path, os.R_OK)) else path

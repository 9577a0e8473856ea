"""Converts the strings of a call to the values of a function's parameters."""

from __future__ import annotations

import importlib
import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskworker.sandbox.inside import plain
from taskworker.sandbox.inside.reading import can_be_read, decode, decode_syntax
from taskworker.sandbox.inside.refusals import ArgumentRefused

_EMPTY = inspect.Parameter.empty
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VALIDATION = "taskworker.sandbox.inside.validation"


def value_of(text: str) -> Any:
    """Return the value of a string: its JSON value if it is JSON, otherwise the string itself.

    Raises:
        ArgumentRefused: it is JSON that Python cannot read.
    """
    try:
        return decode(text)
    except json.JSONDecodeError:
        return text
    except RecursionError:
        raise ArgumentRefused("it is nested too deeply; quote it, if it is a text") from None
    except ValueError:
        if not can_be_read(text, decode_syntax):
            return text
        raise ArgumentRefused("it has a number of too many digits; quote it, if it is a text") from None


class Parameters:
    """The parameters of a function.

    Args:
        function: the function; its annotations, if there are any, determine the types.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        hints = _hints_of(function)
        self._hints = {name: hints[name] for name in self._signature.parameters if hints.get(name, Any) is not Any}
        self._takers = {name: plain.taker(hint) or _validator(hint) for name, hint in self._hints.items()}
        self._validators: dict[str, Callable[[str], Any]] = {}
        parameters = self._signature.parameters.values()
        self._names = tuple(self._signature.parameters)
        self._only_positional = all(one.kind in _BY_POSITION for one in parameters)
        self._needed = sum(one.default is _EMPTY for one in parameters)

    def take(self, args: Sequence[str], kwargs: Mapping[str, str]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the positional and keyword arguments for the function.

        Like `bind`, but faster if all arguments are positional.

        Raises:
            ArgumentRefused: see `bind`.
        """
        if self._only_positional and not kwargs and self._needed <= len(args) <= len(self._names):
            return list(map(self._convert, self._names, args)), {}
        bound = self.bind(args, kwargs)
        return bound.args, bound.kwargs

    def bind(self, args: Sequence[str], kwargs: Mapping[str, str]) -> inspect.BoundArguments:
        """Convert the arguments to values of the right types.

        Raises:
            ArgumentRefused: arguments are missing, superfluous, unknown or do not fit; the text names the parameter.
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentRefused(f"{error}; the function takes {self._signature}") from None
        for name, given in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                values: Any = tuple(self._convert(name, text) for text in given)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                values = {key: self._convert(name, text, key) for key, text in given.items()}
            else:
                values = self._convert(name, given)
            bound.arguments[name] = values
        bound.apply_defaults()
        return bound

    def _convert(self, name: str, text: str, shown: str | None = None) -> Any:
        taker = self._takers.get(name)
        try:
            if taker is None:
                return value_of(text)
            value = taker(text)
            return self._validated(name, text) if value is plain.UNSURE else value
        except ArgumentRefused as error:
            raise ArgumentRefused(f"parameter {shown or name!r}: {error}") from None

    def _validated(self, name: str, text: str) -> Any:
        """Convert an argument with pydantic, after `plain` was unsure."""
        if name not in self._validators:
            self._validators[name] = _validator(self._hints[name])
        return self._validators[name](text)


def _validator(hint: Any) -> Callable[[str], Any]:
    validator: Callable[[str], Any] = importlib.import_module(_VALIDATION).Validator(hint)
    return validator


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        # An annotation uses names that only a type checker sees: its values are taken as plain JSON.
        return {name: hint for name, hint in inspect.get_annotations(function).items() if not isinstance(hint, str)}

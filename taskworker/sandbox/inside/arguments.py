"""From the strings of a call to the values of a function's parameters."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticErrorMixin

_EMPTY = inspect.Parameter.empty
_BYTES_AS_BASE64 = ConfigDict(val_json_bytes="base64", arbitrary_types_allowed=True)


class ArgumentRefused(Exception):
    """An argument does not fit its parameter; the text names it."""


def value_of(text: str) -> Any:
    """What a string of a call means: the JSON value it is, else the bare word itself."""
    return json.loads(_as_json(text))


def _as_json(text: str) -> str:
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return json.dumps(text)
    return text


def _refuse_constant(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is no JSON")


class Parameters:
    """The parameters of a function, ready to take calls.

    Args:
        function: whose annotations, if there are any, say what each parameter takes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        hints = _hints_of(function)
        self._adapters = {
            name: _adapter(hints[name]) for name in self._signature.parameters if hints.get(name, _EMPTY) is not _EMPTY
        }

    def bind(self, args: Sequence[str], kwargs: Mapping[str, str]) -> inspect.BoundArguments:
        """The arguments as values of the right types.

        Raises:
            ArgumentRefused: too few, too many, unknown or misfitting ones; the text names the parameter.
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
        adapter = self._adapters.get(name)
        if adapter is None:
            return value_of(text)
        document = _as_json(text)
        try:
            return adapter.validate_json(document)
        except ValidationError as error:
            if document == text:
                # It is JSON, but a parameter for texts may want it as it stands: "3" for a str.
                try:
                    return adapter.validate_json(json.dumps(text))
                except ValidationError:
                    pass
            raise ArgumentRefused(f"parameter {shown or name!r}: {_in_words(error)}") from None


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        # An annotation names what only a type checker sees: the values are taken as JSON has them.
        return {name: hint for name, hint in inspect.get_annotations(function).items() if not isinstance(hint, str)}


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=_BYTES_AS_BASE64)
    except PydanticUserError as error:
        if cast(PydanticErrorMixin, error).code != "type-adapter-config-unused":
            raise
        return TypeAdapter(hint)  # models and dataclasses have a configuration of their own


def _in_words(error: ValidationError) -> str:
    problems = []
    for one in error.errors(include_url=False, include_context=False)[:5]:
        place = ".".join(str(part) for part in one["loc"])
        given = repr(one["input"])
        problems.append(
            f"{place + ': ' if place else ''}{one['msg']} (got {given if len(given) <= 80 else given[:77] + '...'})"
        )
    return "; ".join(problems)

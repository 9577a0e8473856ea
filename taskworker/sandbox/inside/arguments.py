"""From the strings of a call to the values of a function's parameters."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticErrorMixin

_READ_ALIKE_CHARS = 4_000
"""Python converts integers of up to 4,300 digits."""
_EMPTY = inspect.Parameter.empty
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BYTES_AS_BASE64 = ConfigDict(val_json_bytes="base64", arbitrary_types_allowed=True)


class ArgumentRefused(Exception):
    """An argument does not fit its parameter; the text names it."""


def value_of(text: str) -> Any:
    """What a string of a call means: the JSON value it is, else the bare word itself."""
    try:
        return _decode(text)
    except (ValueError, RecursionError):
        return text


def _as_json(text: str) -> str:
    try:
        _decode(text)
    except (ValueError, RecursionError):
        return json.dumps(text)
    return text


def _refuse_constant(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is no JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _read_alike(text: str) -> bool:
    """Whether pydantic, which takes NaN, Infinity and integers of any length, reads what ``json`` reads here."""
    return len(text) < _READ_ALIKE_CHARS and "N" not in text and "I" not in text


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
        parameters = self._signature.parameters.values()
        self._names = tuple(self._signature.parameters)
        self._only_positional = all(one.kind in _BY_POSITION for one in parameters)
        self._needed = sum(one.default is _EMPTY for one in parameters)

    def take(self, args: Sequence[str], kwargs: Mapping[str, str]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """What to call the function with; as `bind` says, and by a short way where arguments come by position.

        Raises:
            ArgumentRefused: as `bind`.
        """
        if self._only_positional and not kwargs and self._needed <= len(args) <= len(self._names):
            return [self._convert(name, text) for name, text in zip(self._names, args, strict=False)], {}
        bound = self.bind(args, kwargs)
        return bound.args, bound.kwargs

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
        if _read_alike(text):
            try:
                return adapter.validator.validate_json(text)
            except ValidationError:
                pass  # a bare word, or a misfit
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

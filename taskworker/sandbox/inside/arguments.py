"""From the strings of a call to the values of a function's parameters."""

from __future__ import annotations

import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType

_READ_ALIKE_CHARS = 4_000
"""Python converts integers of up to 4,300 digits."""
_EMPTY = inspect.Parameter.empty
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_EXPONENT = re.compile(r"[eE]\+?[0-9]{3}")
"""Of a number that may be beyond what floats hold."""
_JSON_SPACE = " \t\n\r"
_OTHER_TYPE = frozenset[str](
    {
        *("string_type", "bytes_type", "path_type", "uuid_type", "url_type", "enum", "literal_error"),
        *("int_type", "int_parsing", "int_from_float", "float_type", "float_parsing", "decimal_type", "complex_type"),
        *("bool_type", "bool_parsing", "date_type", "time_type", "datetime_type", "time_delta_type", "none_required"),
        *("list_type", "tuple_type", "set_type", "frozen_set_type", "dict_type", "model_type", "dataclass_type"),
        *("pattern_type", "fraction_type"),
    }
)
"""Errors of pydantic that say that a value is of another type, and nothing of what it is."""
_BYTES_AS_BASE64 = ConfigDict(val_json_bytes="base64", arbitrary_types_allowed=True)


class ArgumentRefused(Exception):
    """An argument does not fit its parameter; the text names it."""


def value_of(text: str) -> Any:
    """What a string of a call means: the JSON value it is, else the bare word itself.

    Raises:
        ArgumentRefused: it is JSON that Python cannot read.
    """
    try:
        return _decode(text)
    except json.JSONDecodeError:
        return text
    except RecursionError:
        raise ArgumentRefused("it is nested too deeply; quote it, if it is a text") from None
    except ValueError:
        if not _can_be_read(text, _decode_syntax):
            return text
        raise ArgumentRefused("it has a number of too many digits; quote it, if it is a text") from None


def _can_be_read(text: str, decode: Callable[[str], Any]) -> bool:
    try:
        decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond what floats hold")
    return value


_decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
_decode_syntax = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=len).decode
"""Numbers may have any number of digits in it."""


def _read_alike(text: str) -> bool:
    """Whether pydantic, which takes NaN, Infinity and integers of any length, reads what ``json`` reads here."""
    return len(text) < _READ_ALIKE_CHARS and "N" not in text and "I" not in text and not _EXPONENT.search(text)


class Parameters:
    """The parameters of a function, ready to take calls.

    Args:
        function: whose annotations, if there are any, say what each parameter takes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        hints = _hints_of(function)
        self._adapters = {
            name: _adapter(hints[name]) for name in self._signature.parameters if hints.get(name, Any) is not Any
        }
        self._decimals = frozenset(name for name in self._adapters if _is_decimal(hints[name]))
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
        try:
            if adapter is None:
                return value_of(text)
            if name in self._decimals and _NUMBER.fullmatch(text):
                text = f'"{text}"'  # pydantic would read a number as a float, and so lose digits
            return _validated(adapter, text)
        except ArgumentRefused as error:
            raise ArgumentRefused(f"parameter {shown or name!r}: {error}") from None
        except ValidationError as error:
            raise ArgumentRefused(f"parameter {shown or name!r}: {_in_words(error)}") from None


def _validated(adapter: TypeAdapter[Any], text: str) -> Any:
    """A JSON value or a bare word as the adapter's type.

    What is JSON may be wanted as it stands: 3 for a str. That is so if it fits the type in no other way, but not if
    the function's own checks refuse it; and a text in quotes is never wanted with them.

    Raises:
        ValidationError: it does not fit.
    """
    refusal: ValidationError | None = None
    if _read_alike(text) or _can_be_read(text, _decode):
        try:
            return adapter.validator.validate_json(text)
        except ValidationError as error:
            if _can_be_read(text, _decode):
                if text.lstrip(_JSON_SPACE).startswith('"') or not _is_of_other_type(error):
                    raise
                refusal = error
    try:
        return adapter.validate_json(json.dumps(text))
    except ValidationError as error:
        raise refusal or error from None


def _is_of_other_type(error: ValidationError) -> bool:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    # A place with two parts is inside a member of a union, which then has the right type.
    return all(one["type"] in _OTHER_TYPE and len(one["loc"]) < 2 for one in found)


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        # An annotation names what only a type checker sees: the values are taken as JSON has them.
        return {name: hint for name, hint in inspect.get_annotations(function).items() if not isinstance(hint, str)}


def _adapter(hint: Any) -> TypeAdapter[Any]:
    # By another name: TypeAdapter refuses a configuration for dataclasses and typed dictionaries, though those without
    # one of their own would take it. Models have their own.
    named: Any = TypeAliasType("Parameter", hint)
    return TypeAdapter(named, config=_BYTES_AS_BASE64)


def _is_decimal(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _is_decimal(typing.get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return all(_is_decimal(one) or one is types.NoneType for one in typing.get_args(hint))
    return hint is Decimal


def _in_words(error: ValidationError) -> str:
    problems = []
    for one in error.errors(include_url=False, include_context=False)[:5]:
        place = ".".join(str(part) for part in one["loc"])
        given = repr(one["input"])
        problems.append(
            f"{place + ': ' if place else ''}{one['msg']} (got {given if len(given) <= 80 else given[:77] + '...'})"
        )
    return "; ".join(problems)

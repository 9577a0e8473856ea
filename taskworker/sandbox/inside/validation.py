"""Converts arguments to any type known to pydantic.

Loaded only when needed: pydantic makes up half of the memory that calls inherit.
"""

from __future__ import annotations

import json
import re
import types
import typing
from decimal import Decimal
from typing import Annotated, Any, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType

from taskworker.sandbox.inside.reading import SPACE, can_be_read, read_alike
from taskworker.sandbox.inside.refusals import ArgumentRefused

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_OTHER_TYPE = frozenset[str](
    {
        *("string_type", "bytes_type", "path_type", "uuid_type", "url_type", "enum", "literal_error"),
        *("int_type", "int_parsing", "int_from_float", "float_type", "float_parsing", "decimal_type", "complex_type"),
        *("bool_type", "bool_parsing", "date_type", "time_type", "datetime_type", "time_delta_type", "none_required"),
        *("list_type", "tuple_type", "set_type", "frozen_set_type", "dict_type", "model_type", "dataclass_type"),
        *("pattern_type", "fraction_type"),
    }
)
"""Errors of pydantic which only say that a value has the wrong type."""
_BYTES_AS_BASE64 = ConfigDict(val_json_bytes="base64", arbitrary_types_allowed=True)


class Validator:
    """Converts the texts given for a parameter.

    Args:
        hint: annotation of the parameter.
    """

    def __init__(self, hint: Any) -> None:
        self._adapter = _adapter(hint)
        self._decimal = _is_decimal(hint)

    def __call__(self, text: str) -> Any:
        """Convert a text to a value.

        Raises:
            ArgumentRefused: it does not fit; the text says why.
        """
        try:
            if self._decimal and _NUMBER.fullmatch(text):
                text = f'"{text}"'  # pydantic would read a number as a float and lose digits
            return _validated(self._adapter, text)
        except ValidationError as error:
            raise ArgumentRefused(_in_words(error)) from None


def _validated(adapter: TypeAdapter[Any], text: str) -> Any:
    """Convert a JSON value or a bare word to the adapter's type.

    A text that is JSON may still be meant as a plain text, such as 3 for a ``str``. It is taken as a plain text if its
    JSON value has the wrong type, but not if the function's own checks refuse that value. A text in quotes always
    counts as JSON.

    Raises:
        ValidationError: the text does not fit.
    """
    refusal: ValidationError | None = None
    if read_alike(text) or can_be_read(text):
        try:
            return adapter.validator.validate_json(text)
        except ValidationError as error:
            if can_be_read(text):
                if text.lstrip(SPACE).startswith('"') or not _is_of_other_type(error):
                    raise
                refusal = error
    try:
        return adapter.validate_json(json.dumps(text))
    except ValidationError as error:
        raise refusal or error from None


def _is_of_other_type(error: ValidationError) -> bool:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    # A location with two parts is inside a member of a union, which then has the right type.
    return all(one["type"] in _OTHER_TYPE and len(one["loc"]) < 2 for one in found)


def _adapter(hint: Any) -> TypeAdapter[Any]:
    # An alias, because TypeAdapter refuses a configuration for dataclasses and typed dictionaries, although those
    # without a configuration of their own could take it. Models have their own.
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

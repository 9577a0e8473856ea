"""Converts to JSON what a function returns or passes to another function."""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import sys
from collections import deque
from collections.abc import Callable
from pathlib import PurePath
from types import GeneratorType
from typing import Any

_BYTES = (bytes, bytearray, memoryview)
_GATHERED = (set, frozenset, deque, GeneratorType)
_FAULTS = {
    "Circular reference": "it contains itself",
    "Exceeds the limit": "it holds a number of too many digits; return it as a text",
    "Out of range float": "it holds a number that is not finite (nan or inf); return None instead",
}
_METHODS = {"numpy": ".item() or .tolist()", "pandas": ".to_dict() or .tolist()"}


class NoJson(ValueError):
    """A value has no JSON form; the text says why."""


def json_of(value: Any, what: str) -> str:
    """Convert a value to JSON.

    Models and dataclasses become objects; times are in ISO 8601, bytes in base64 (RFC 4648, section 4).

    Args:
        value: the value.
        what: name of the value in the error's text.

    Raises:
        NoJson: the value, or something in it, has no JSON form.
    """
    short = _SHORT.get(type(value))
    try:
        text = _written(value) if short is None else short(value)
        text.encode()
    except MemoryError:
        raise
    except Exception as error:  # serializers and attributes of the user may raise anything
        raise NoJson(f"{what} cannot be sent as JSON: {_fault(error)}") from None
    return text


def _written(value: Any) -> str:
    try:
        return _encode(value)
    except TypeError:  # a key is neither a text nor a number
        return _encode(_with_plain_keys(value))


def _plain(value: Any) -> Any:
    """Convert a value of another type to one of JSON's types, or one step closer to it."""
    if isinstance(value, _BYTES):
        return base64.b64encode(value).decode()
    if isinstance(value, _GATHERED):
        return list(value)
    if isinstance(value, enum.Enum):
        return value.value
    kind = type(value)
    if hasattr(kind, "__dataclass_fields__") and not hasattr(kind, "__pydantic_serializer__"):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, PurePath):
        return str(value)
    return _by_pydantic(value, inf_nan_mode="constants")


def _by_pydantic(value: Any, **options: Any) -> Any:
    from pydantic_core import to_jsonable_python  # large, and most results do not need it

    return to_jsonable_python(value, **options)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode

_SHORT: dict[type, Callable[[Any], str]] = {
    int: int.__repr__,
    str: json.encoder.encode_basestring,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
}
"""Types that need no encoder, as making one takes time for each value."""


def _with_plain_keys(value: Any) -> Any:
    """Convert a value, including its keys, to JSON's types."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {_key(key): _with_plain_keys(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_plain_keys(one) for one in value]
    return _with_plain_keys(_plain(value))


def _key(key: Any) -> Any:
    if key is None or isinstance(key, str | int | float):
        return key
    if isinstance(key, _BYTES):
        return _plain(key)
    if isinstance(key, enum.Enum):
        return _key(key.value)
    return next(iter(_by_pydantic({key: None})))


def _way_out(text: str) -> str:
    for library, methods in _METHODS.items():
        if f"'{library}." in text:
            return f"return plain values, as {methods} gives them"
    return "return plain values: dicts, lists, texts, numbers"


def _fault(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or contains itself"
    if isinstance(error, UnicodeEncodeError):
        return "a text has lone surrogates"
    if isinstance(error, UnicodeDecodeError):
        return (
            "a model has bytes that are not UTF-8 text; configure it to write bytes in another form, with "
            "ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')"
        )
    pydantic_core = sys.modules.get("pydantic_core")
    if pydantic_core is not None and isinstance(error, pydantic_core.PydanticSerializationError):
        return f"{error}; {_way_out(str(error))}"
    for sign, words in _FAULTS.items():
        if isinstance(error, ValueError) and str(error).startswith(sign):
            return words
    return f"{type(error).__name__}: {error}"

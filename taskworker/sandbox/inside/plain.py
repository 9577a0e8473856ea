"""Converts arguments to Python's built-in types without pydantic, where the result is surely the same.

For everything else, including texts that do not fit, the result is `UNSURE`, and pydantic decides.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from typing import Any, Union

from taskworker.sandbox.inside.reading import SPACE, decode, read_alike

UNSURE = object()
"""Returned instead of a value if pydantic has to decide."""
_INTEGER = re.compile(r"-?[1-9][0-9]{0,17}")
_DIGITS_MAX = 18
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,14}|-?(?:0|[1-9][0-9]{0,14})\.[0-9]{1,15}")
_SCALARS = (int, float, bool, str)
_CONTAINERS = (list, dict)

Taker = Callable[[str], Any]


def taker(hint: Any) -> Taker | None:
    """Return the function that converts texts for this annotation; None if pydantic always has to do it."""
    inner = _but_none(hint)
    if inner is not None:
        take = taker(inner)
        return None if take is None else _or_none(take)
    if hint in _SCALARS:
        return _OF_SCALARS[hint]
    return _of_container(hint) if _is_container(hint) else None


def _but_none(hint: Any) -> Any:
    """Return ``T`` for ``T | None``, and None for anything else."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return None
    members = [one for one in typing.get_args(hint) if one is not types.NoneType]
    return members[0] if len(members) == 1 and len(typing.get_args(hint)) > 1 else None


def _or_none(take: Taker) -> Taker:
    def take_or_none(text: str) -> Any:
        if text == "null":
            return None
        return UNSURE if text.strip(SPACE) == "null" else take(text)

    return take_or_none


def _integer(text: str) -> Any:
    if text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX and (text[0] != "0" or text == "0"):
        return int(text)  # saves the object of a match
    return int(text) if _INTEGER.fullmatch(text) else UNSURE


def _float(text: str) -> Any:
    return float(text) if _NUMBER.fullmatch(text) else UNSURE


def _bool(text: str) -> Any:
    return True if text == "true" else False if text == "false" else UNSURE


def _text(text: str) -> Any:
    """Decode a text in quotes as JSON; take any other text as it is."""
    if not text.lstrip(SPACE).startswith('"'):
        return text
    value = _json(text)
    return value if isinstance(value, str) else UNSURE


def _json(text: str) -> Any:
    if not read_alike(text) or "\\u" in text:  # JSON readers differ on lone surrogates
        return UNSURE
    try:
        return decode(text)
    except (ValueError, RecursionError):
        return UNSURE


_OF_SCALARS: dict[Any, Taker] = {int: _integer, float: _float, bool: _bool, str: _text}


def _is_container(hint: Any) -> bool:
    if hint is Any or hint in _SCALARS or hint in _CONTAINERS:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return _is_container(arguments[0])
    return origin is dict and arguments[0] is str and _is_container(arguments[1])


def _of_container(hint: Any) -> Taker:
    def take(text: str) -> Any:
        value = _json(text)
        return value if value is not UNSURE and _fits(value, hint) else UNSURE

    return take


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type without any conversion, including its elements."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if type(value) is not origin:
        return False
    if not arguments:
        return True
    if origin is list:
        return all(_fits(one, arguments[0]) for one in value)
    return all(_fits(one, arguments[1]) for one in value.values())

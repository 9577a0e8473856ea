"""Arguments of Python's own types, taken without pydantic where it is sure what pydantic would make of them.

Anything else, all that does not fit included, is `UNSURE`, and pydantic's to take or to refuse.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from typing import Any, Union

from taskworker.sandbox.inside.reading import SPACE, decode, read_alike

UNSURE = object()
"""In place of a value."""
_INTEGER = re.compile(r"-?[1-9][0-9]{0,17}")
_DIGITS_MAX = 18
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,14}|-?(?:0|[1-9][0-9]{0,14})\.[0-9]{1,15}")
_SCALARS = (int, float, bool, str)
_CONTAINERS = (list, dict)

Taker = Callable[[str], Any]


def taker(hint: Any) -> Taker | None:
    """What takes the texts of a parameter with this annotation; None if that is pydantic's affair from the outset."""
    inner = _but_none(hint)
    if inner is not None:
        take = taker(inner)
        return None if take is None else _or_none(take)
    if hint in _SCALARS:
        return _OF_SCALARS[hint]
    return _of_container(hint) if _is_container(hint) else None


def _but_none(hint: Any) -> Any:
    """``T`` of ``T | None``; None of anything else."""
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
        return int(text)  # a match would be one more object
    return int(text) if _INTEGER.fullmatch(text) else UNSURE


def _float(text: str) -> Any:
    return float(text) if _NUMBER.fullmatch(text) else UNSURE


def _bool(text: str) -> Any:
    return True if text == "true" else False if text == "false" else UNSURE


def _text(text: str) -> Any:
    """A text in quotes is JSON, if it can be read; all else is wanted as it stands."""
    if not text.lstrip(SPACE).startswith('"'):
        return text
    value = _json(text)
    return value if isinstance(value, str) else UNSURE


def _json(text: str) -> Any:
    if not read_alike(text) or "\\u" in text:  # of surrogates that have no partner, JSON readers think differently
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
    """Whether a value is of a type as it is, with nothing to be converted in it."""
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

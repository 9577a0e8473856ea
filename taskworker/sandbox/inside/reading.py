"""Reading JSON in calls' arguments: like ``json``, but without constants and numbers that JSON does not have."""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Callable
from typing import Any

SPACE = " \t\n\r"
_READ_ALIKE_CHARS = 4_000
"""Below the 4,300 digits that Python converts to an integer."""
_EXPONENT = re.compile(r"[eE]\+?[0-9]{3}")
"""Exponent of a number that may be too large for a float."""


def _refuse_constant(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a float")
    return value


decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
decode_syntax = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=len).decode
"""Checks syntax only: integers may have any number of digits."""


def can_be_read(text: str, decoded_by: Callable[[str], Any] = decode) -> bool:
    """Whether a text is JSON that ``decoded_by`` accepts."""
    try:
        decoded_by(text)
    except (ValueError, RecursionError):
        return False
    return True


def read_alike(text: str) -> bool:
    """Whether pydantic surely reads this text as `decode` does. Pydantic also takes NaN, Infinity and long integers."""
    return len(text) < _READ_ALIKE_CHARS and "N" not in text and "I" not in text and not _EXPONENT.search(text)

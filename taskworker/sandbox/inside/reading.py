"""JSON as calls write it: what Python reads, without the constants and numbers that JSON does not have."""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Callable
from typing import Any

SPACE = " \t\n\r"
_READ_ALIKE_CHARS = 4_000
"""Python converts integers of up to 4,300 digits."""
_EXPONENT = re.compile(r"[eE]\+?[0-9]{3}")
"""Of a number that may be beyond what floats hold."""


def _refuse_constant(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond what floats hold")
    return value


decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
decode_syntax = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=len).decode
"""Numbers may have any number of digits in it."""


def can_be_read(text: str, decoded_by: Callable[[str], Any] = decode) -> bool:
    """Whether a text is JSON that Python reads."""
    try:
        decoded_by(text)
    except (ValueError, RecursionError):
        return False
    return True


def read_alike(text: str) -> bool:
    """Whether pydantic, which takes NaN, Infinity and integers of any length, reads what ``json`` reads here."""
    return len(text) < _READ_ALIKE_CHARS and "N" not in text and "I" not in text and not _EXPONENT.search(text)

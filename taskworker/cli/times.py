"""Spans of time as users write them."""

from __future__ import annotations

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.text import one_line

_UNITS_S = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_DIGITS_MAX = 6


def span_s(text: str, option: str) -> float:
    """How many seconds an option's value stands for, such as ``90s``, ``30min``, ``12h`` or ``7d``.

    Raises:
        Failure: it is no span of time.
    """
    number = text.rstrip("smindh")
    unit = text[len(number) :]
    if not number.isascii() or not number.isdecimal() or unit not in _UNITS_S or len(number) > _DIGITS_MAX:
        raise Failure(f"{option} {one_line(text)!r}: write a number and s, min, h or d", ExitCode.USAGE)
    return int(number) * _UNITS_S[unit]

"""Whether a command printed what the documentation shows, apart from what differs each time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_KINDS: Mapping[str, tuple[str, str]] = {
    "elided": (r"\S*…\S*", r"\S+"),
    "measured": (r"\(\d+\.\d+ s[^)]*\)", r"\(\d+\.\d+ s[^)]*\)"),
    "time": (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"),
    "process": (r"(?<=  )\d+(?=  127\.)", r"\d+"),
    "address": (r"127\.0\.0\.1:\d+", r"[^\s,;]+"),
    "id": (r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,32}\b", r"[0-9a-f]{8,32}"),
    "size": (r"\d[\d.,]* (?:[KMGT]i)?B\b", r"\d[\d.,]* (?:[KMGT]i)?B"),
    "share": (r"\d+(?:\.\d+)?%", r"\d+(?:\.\d+)?%"),
    "age": (r"\b\d+ s\b", r"\d+ s"),
}
_VARIES = re.compile("|".join(f"(?P<{kind}>{shown})" for kind, (shown, _) in _KINDS.items()))
_NAMES = ("elided", "process", "address", "id")
_ANY_LINES = "..."
_ANY_LINES_PATTERN = r"(?:.*\n)*"


def likened(shown: Sequence[str], printed: str) -> dict[str, str] | None:
    """What stands in ``printed`` in place of the ids, process numbers and addresses of ``shown``; None if they differ.

    Nothing shown is like anything.
    """
    if not shown:
        return {}
    found: list[str] = []
    parts = [_ANY_LINES_PATTERN if line == _ANY_LINES else _line_pattern(line, found) for line in shown]
    matched = re.fullmatch("".join(parts), printed if printed.endswith("\n") else f"{printed}\n")
    return None if matched is None else dict(zip(found, matched.groups(), strict=True))


def _line_pattern(line: str, found: list[str]) -> str:
    pattern, end = "", 0
    for varying in _VARIES.finditer(line):
        kind = str(varying.lastgroup)
        other = _KINDS[kind][1]
        if kind in _NAMES:
            found.append(varying.group())
            other = f"({other})"
        pattern += _literal(line[end : varying.start()]) + other
        end = varying.end()
    return pattern + _literal(line[end:]) + r"\n"


def _literal(text: str) -> str:
    return r"\s+".join(map(re.escape, re.split(r"\s+", text)))

"""What was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad something is."""

    OK = "ok"
    WARNING = "warning"  # it works, but not as well as it could, or not for long
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Attributes:
        about: what was looked at, such as ``clock``.
        verdict: how bad it is.
        text: what was found.
        advice: what to do; empty if there is nothing to do.
    """

    about: str
    verdict: Verdict
    text: str
    advice: str = ""


def fine(about: str, text: str) -> Finding:
    """Something that is as it should be."""
    return Finding(about, Verdict.OK, text)


def warning(about: str, text: str, advice: str) -> Finding:
    """Something that could be better."""
    return Finding(about, Verdict.WARNING, text, advice)


def problem(about: str, text: str, advice: str) -> Finding:
    """Something that does not work."""
    return Finding(about, Verdict.PROBLEM, text, advice)

"""What a scenario claims, line by line, and whether it held."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence


class Verdicts:
    """Collects and prints checks as they are made."""

    def __init__(self, scenario: str) -> None:
        self._scenario = scenario
        self._began_s = time.monotonic()
        self._failed = 0
        self._checks = 0

    def note(self, text: str) -> None:
        """A figure that nothing is required of."""
        _say(f"      {text}")

    def progress(self, text: str) -> None:
        """How far it is."""
        _say(f"  ... {time.monotonic() - self._began_s:5.0f} s  {text}")

    def check(self, what: str, figure: str, *, holds: bool) -> None:
        """One line of what is required, with the figure seen."""
        self._checks += 1
        self._failed += not holds
        _say(f"{'ok   ' if holds else 'FAIL '} {what}: {figure}")

    def errors(self, what: str, found: Sequence[str]) -> None:
        """That there were none of these."""
        self.check(what, str(len(found)), holds=not found)
        for text in found[:20]:
            self.note(text)

    def end(self) -> bool:
        """The last line; whether all held."""
        load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
        taken_s = time.monotonic() - self._began_s
        outcome = (
            f"{self._failed} of {self._checks} checks FAILED" if self._failed else f"all {self._checks} checks hold"
        )
        _say(f"{self._scenario}: {outcome}; {taken_s:.0f} s, load average {load} on {os.cpu_count()} processors")
        return not self._failed


def spread(values: Sequence[float], unit: str) -> str:
    """Median, 99th percentile and maximum."""
    if not values:
        return "none"
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"median {statistics.median(ordered):.2f} {unit}, p99 {p99:.2f} {unit}, most {ordered[-1]:.2f} {unit}"


def _say(text: str) -> None:
    print(text)
    sys.stdout.flush()

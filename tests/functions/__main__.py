"""``python -m tests.functions SCENARIO [--rounds N] [--seed S]``: long runs of calls against a pool of processes."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.functions.killing import kill_workers
from tests.functions.soak import soak


class Told(Protocol):
    """What a scenario found."""

    violations: list[str]

    def lines(self) -> list[str]:
        """For people."""


SCENARIOS: dict[str, tuple[Callable[[Path, int, int], Told], int]] = {
    "kill-worker": (kill_workers, 50),
    "soak": (soak, 20_000),
}


def main() -> int:
    """Run a scenario; 1 if something happened that must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.functions", description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--rounds", type=int, help="kills (default 50), or calls (default 20000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    scenario, usual = SCENARIOS[options.scenario]
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="functions-") as directory:
        told = scenario(Path(directory), options.rounds or usual, options.seed)
    print(*told.lines(), sep="\n")
    print(f"{options.scenario}: {len(told.violations)} violations, {time.monotonic() - began_s:.0f} s")
    return min(len(told.violations), 1)


if __name__ == "__main__":
    sys.exit(main())

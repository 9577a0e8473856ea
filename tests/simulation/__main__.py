"""``python -m tests.simulation --seeds A-B [--steps N]``: run seeds, and show the trace of the first that fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.campaign import STEPS, run_seeds


def main() -> int:
    """Run the seeds asked for; 1 if one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0-999", help="A-B, both included, or a single one")
    parser.add_argument("--steps", type=int, default=STEPS, help="operations and faults of each seed")
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument("--keep-going", action="store_true", help="only name the seeds that fail")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    began_s = time.monotonic()
    failed = 0
    faults: Counter[str] = Counter()
    least = sys.maxsize
    for outcome in run_seeds(seeds, arguments.steps, arguments.processes):
        faults += outcome.faults
        least = min(least, outcome.faults.total())
        if outcome.failure is None:
            continue
        failed += 1
        if not arguments.keep_going:
            again = f"seed {outcome.seed} fails; again: python -m tests.simulation --seeds {outcome.seed}"
            print(outcome.failure.trace, f"\n{again}", sep="\n")
            return 1
        print(f"seed {outcome.seed}: {outcome.failure.text}")
    taken_s = time.monotonic() - began_s
    print(
        f"{len(seeds)} seeds, {failed} failed, {taken_s:.1f} s; {least} faults or more each, {faults.total():,} in all:"
    )
    print(", ".join(f"{count:,} {kind}" for kind, count in faults.most_common()))
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())

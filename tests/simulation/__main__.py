"""``python -m tests.simulation --seeds A-B [--steps N]``: run seeds, and show the trace of the first that fails.

All seeds are run with a pool, and every 50th of them also with an embedded store.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation.campaign import STEPS, Outcome, run_embedded_seeds, run_seeds

_EMBEDDED_EVERY = 50  # an embedded seed takes as long as several seeds of a pool
_PROGRESS_S = 60.0  # how often to report progress on standard error


def main() -> int:
    """Run the requested seeds; return 1 if one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0-999", help="A-B, both included, or a single one")
    parser.add_argument("--steps", type=int, default=STEPS, help="operations and faults of each seed of a pool")
    parser.add_argument("--store", choices=("pool", "embedded"), help="run all seeds with this one only")
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument("--keep-going", action="store_true", help="only name the seeds that fail")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    failed = 0
    if arguments.store != "embedded":
        failed += _tell("pool", run_seeds(seeds, arguments.steps, arguments.processes), arguments.keep_going)
    if arguments.store != "pool" and (arguments.keep_going or not failed):
        share = seeds if arguments.store else seeds[::_EMBEDDED_EVERY]
        failed += _tell("embedded", run_embedded_seeds(share, arguments.processes), arguments.keep_going)
    return min(failed, 1)


def _tell(store: str, outcomes: Iterable[Outcome], keep_going: bool) -> int:
    """Print how seeds went; return how many failed."""
    began_s = told_s = time.monotonic()
    count = failed = 0
    faults: Counter[str] = Counter()
    least = sys.maxsize
    for outcome in outcomes:
        count += 1
        faults += outcome.faults
        least = min(least, outcome.faults.total())
        if time.monotonic() - told_s > _PROGRESS_S:
            told_s = time.monotonic()
            print(f"{store}: {count} seeds so far, up to {outcome.seed}, {failed} failed", file=sys.stderr)
        if outcome.failure is None:
            continue
        failed += 1
        if not keep_going:
            again = f"again: python -m tests.simulation --store {store} --seeds {outcome.seed}"
            print(outcome.failure.trace, f"\nseed {outcome.seed} fails; {again}", sep="\n")
            return failed
        print(f"{store}, seed {outcome.seed}: {outcome.failure.text}", flush=True)
    taken_s = time.monotonic() - began_s
    print(
        f"{store}: {count} seeds, {failed} failed, {taken_s:.1f} s; {least} faults or more each, "
        f"{faults.total():,} in all:"
    )
    print(", ".join(f"{number:,} {kind}" for kind, number in faults.most_common()))
    return failed


if __name__ == "__main__":
    sys.exit(main())

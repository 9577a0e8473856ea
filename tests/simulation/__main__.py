"""``python -m tests.simulation --seeds A-B [--steps N]``: run seeds, and show the trace of the first that fails."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.campaign import STEPS, run_seed


def main() -> int:
    """Run the seeds asked for; 1 if one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0-999", help="A-B, both included, or a single one")
    parser.add_argument("--steps", type=int, default=STEPS, help="operations and faults of each seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep-going", action="store_true", help="only name the seeds that fail")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    began_s = time.monotonic()
    failed = 0
    with ProcessPoolExecutor(arguments.processes) as pool:
        outcomes = pool.map(partial(run_seed, steps=arguments.steps), seeds, chunksize=4)
        for seed, failure in zip(seeds, outcomes, strict=True):
            if failure is None:
                continue
            failed += 1
            if not arguments.keep_going:
                print(failure.trace, f"\nseed {seed} fails; again: python -m tests.simulation --seeds {seed}", sep="\n")
                pool.shutdown(cancel_futures=True)
                return 1
            print(f"seed {seed}: {failure.text}")
    taken_s = time.monotonic() - began_s
    print(f"{len(seeds)} seeds, {failed} failed, {taken_s:.1f} s")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())

"""Shows what a node pool promises, with real processes: one scenario, its figures, and a verdict a line.

The exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.cluster.campaign.run import Run
from tests.cluster.campaign.scenarios import SCENARIOS
from tests.cluster.campaign.verdicts import Verdicts


def main() -> int:
    """Run the scenario asked for."""
    arguments = _parser().parse_args()
    scenario = SCENARIOS[arguments.scenario]
    verdicts = Verdicts(arguments.scenario)
    directory = Path(tempfile.mkdtemp(prefix="cluster-", dir=arguments.dir))
    rounds = arguments.rounds or scenario.rounds
    print(f"{arguments.scenario}: {scenario.what}; rounds {rounds}, seed {arguments.seed}", flush=True)
    try:
        scenario.play(Run(rounds, arguments.seed, directory, verdicts))
    except AssertionError as error:
        verdicts.check("the scenario came to its end", str(error), holds=False)
    finally:
        if arguments.keep:
            print(f"data and logs are in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return 0 if verdicts.end() else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.epilog = "scenarios:\n" + "\n".join(f"  {name:14} {one.what}" for name, one in SCENARIOS.items())
    parser.add_argument("scenario", choices=SCENARIOS, metavar="SCENARIO", help="one of those below")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often, or how much; the scenario says what of")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="decides all choices (default: 1)")
    parser.add_argument("--dir", type=Path, help="where to make a directory for the data (default: TMPDIR)")
    parser.add_argument("--keep", action="store_true", help="leave the data and the logs there")
    return parser


if __name__ == "__main__":
    sys.exit(main())

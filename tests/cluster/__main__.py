"""Shows what a node pool promises, with real processes: one scenario, its figures, and a verdict a line.

The exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

from tests.cluster.campaign.run import Run
from tests.cluster.campaign.scenarios import SCENARIOS, Scenario
from tests.cluster.campaign.verdicts import Verdicts


def main() -> int:
    """Run the scenario asked for."""
    arguments = _parser().parse_args()
    scenario = SCENARIOS[arguments.scenario]
    verdicts = Verdicts(arguments.scenario)
    directory = Path(tempfile.mkdtemp(prefix="cluster-", dir=arguments.dir))
    rounds = arguments.rounds or scenario.rounds
    print(f"{arguments.scenario}: {scenario.what}; rounds {rounds}, seed {arguments.seed}", flush=True)
    well = False
    try:
        _play(scenario, Run(rounds, arguments.seed, directory, verdicts, arguments.former))
        well = verdicts.end()
    finally:
        if arguments.keep:
            print(f"data and logs are in {directory}")
        elif well:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            _keep_logs(directory)
    return 0 if well else 1


def _play(scenario: Scenario, run: Run) -> None:
    try:
        scenario.play(run)
    except AssertionError as error:
        run.verdicts.check("the scenario came to its end", str(error), holds=False)


def _keep_logs(directory: Path) -> None:
    """Remove the data alone: what failed may be rare."""
    for entry in sorted(directory.rglob("*"), reverse=True):
        if entry.is_dir() and not entry.is_symlink():
            with contextlib.suppress(OSError):
                entry.rmdir()  # those with logs stay
        elif entry.suffix != ".log":
            entry.unlink(missing_ok=True)
    print(f"logs are in {directory}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.epilog = "scenarios:\n" + "\n".join(f"  {name:14} {one.what}" for name, one in SCENARIOS.items())
    parser.add_argument("scenario", choices=SCENARIOS, metavar="SCENARIO", help="one of those below")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often, or how much; the scenario says what of")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="decides all choices (default: 1)")
    parser.add_argument("--from", dest="former", default="", metavar="COMMIT", help="upgrade: from this one only")
    parser.add_argument("--dir", type=Path, help="where to make a directory for the data (default: TMPDIR)")
    parser.add_argument(
        "--keep", action="store_true", help="leave data and logs there; logs stay in any case if a check fails"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

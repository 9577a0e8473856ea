"""What the engine and the servers log, as the command shows it on stderr."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

from tests.cli.conftest import TIMEOUT_S

LOGGING = r"""
import logging
from taskworker.cli.terminal import Terminal

def fail(text):
    raise RuntimeError(text)

Terminal(as_json=False)
log = logging.getLogger("storage.anything")
log.warning("a warning\x1b[2m of\ntwo lines")
try:
    fail("went\x1b[2m wrong")
except RuntimeError as error:
    log.exception("repair failed unexpectedly")
    log.error("told by another thread", exc_info=error)
log.error("nothing was raised", exc_info=True)
"""


def test_what_was_not_foreseen_is_logged_with_its_traceback() -> None:
    told = subprocess.run(
        [sys.executable, "-c", LOGGING], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    ).stderr.splitlines()
    assert told[0] == r"taskworker: a warning\x1b[2m of\ntwo lines"
    heads = [at for at, line in enumerate(told) if line.startswith("taskworker: ")]
    assert [told[at] for at in heads[1:]] == [
        "taskworker: repair failed unexpectedly",
        "taskworker: told by another thread",
        "taskworker: nothing was raised",
    ]
    for first, after in pairwise(heads[1:]):
        assert told[first + 1] == "  Traceback (most recent call last):"
        assert told[after - 1] == r"  RuntimeError: went\x1b[2m wrong"
        assert any("in fail" in line for line in told[first:after])
    assert heads[-1] == len(told) - 1

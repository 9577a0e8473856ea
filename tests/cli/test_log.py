"""What the engine and the servers log, as the command shows it on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path

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


def lines_of(command: list[str], *, cwd: Path) -> list[dict[str, str]]:
    """What a command logs until it ends, as JSON."""
    arguments = [sys.executable, "-m", "taskworker", *command, "--log-format", "json"]
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode != 0
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_servers_log_one_object_of_json_a_line(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "catalog").write_text("not a directory")
    lines = lines_of(["--debug", "--store", "store", "serve", "--listen", "127.0.0.1:0"], cwd=tmp_path)
    assert [set(line) for line in lines] == [
        {"time", "level", "logger", "message", "exception"},
        {"time", "level", "logger", "message"},
    ]
    assert lines[0]["exception"].startswith("Traceback (most recent call last):\n")
    assert datetime.fromisoformat(lines[-1]["time"]).tzinfo is not None
    assert lines[-1]["level"] == "error"


def test_what_others_sent_cannot_forge_a_line_of_json() -> None:
    imported = "from taskworker.cli.log_lines import LogFormat\n"
    program = imported + LOGGING.replace("Terminal(as_json=False)", "Terminal(as_json=False).log_in(LogFormat.JSON)")
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    ).stderr
    assert "\x1b" not in told
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["message"] for line in lines][:2] == ["a warning\x1b[2m of\ntwo lines", "repair failed unexpectedly"]
    assert [line["level"] for line in lines] == ["warning", "error", "error", "error"]
    assert ["exception" in line for line in lines] == [False, True, True, False]
    assert "RuntimeError: went\x1b[2m wrong" in lines[1]["exception"]

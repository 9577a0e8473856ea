"""Processes that are forked for tests: many that end at once, and some that nobody waits for."""

import os
import signal
import subprocess
from pathlib import Path

from tests import forked

AT_ONCE = 40
ROUNDS = 5


def _start(tmp_path: Path) -> forked.Command:
    null = subprocess.DEVNULL
    command = forked.Command(["--version"], cwd=tmp_path, env=os.environ, stdin=null, stdout=null, stderr=null)
    os.kill(command.pid, signal.SIGSTOP)
    return command


def test_commands_may_end_at_the_same_moment(tmp_path: Path) -> None:
    for _ in range(ROUNDS):
        commands = [_start(tmp_path) for _ in range(AT_ONCE)]
        for command in commands:
            os.kill(command.pid, signal.SIGKILL)
        assert {command.wait(60) for command in commands} == {-signal.SIGKILL}

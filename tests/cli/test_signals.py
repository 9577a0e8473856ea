"""The unwinding itself, where Python makes it hard."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import TIMEOUT_S

INTERRUPTED_IN_A_FINALIZER = """
import os, signal, time
from taskworker.cli import signals

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass

signals.unwind_on_signals()
try:
    Finalized()
    while True: time.sleep(0.01)
except signals.Stopped as stopped:
    print("unwound", stopped.exit_code)
"""

CLEAN_UP_INTERRUPTED_AGAIN = """
import os, signal, time
from taskworker.cli import signals

signals.unwind_on_signals()
try:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.3)
        print("cleaned up")
except signals.Stopped as stopped:
    print("unwound", stopped.exit_code)
"""

CLEAN_UP_THAT_HANGS = """
import os, signal, threading, time
from taskworker.cli import signals

signals._GIVE_UP_S = 0.5
signals.unwind_on_signals()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
finally:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""

NAMED = """
import os, signal, sys
from types import ModuleType
from taskworker import cli

class Named:
    def __set_name__(self, owner, name):  # Python makes a RuntimeError of what is raised here
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
"""

INTERRUPTED_IN_AN_IMPORT = """
class App(ModuleType):
    @property
    def run(self):
        class Owner:
            named = Named()

sys.modules["taskworker.cli.app"] = App("taskworker.cli.app")
cli.main()
"""

INTERRUPTED_IN_AN_IMPORT_OF_A_COMMAND = """
from taskworker.cli import files
from taskworker.cli.session import Session

def ls(session: Session) -> None:
    class Owner:
        named = Named()

files.ls = ls
sys.argv = ["taskworker", "ls"]
cli.main()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_what_a_finalizer_swallowed_is_raised_again() -> None:
    assert run(INTERRUPTED_IN_A_FINALIZER).stdout == "unwound 130\n"


def test_clean_up_is_not_interrupted() -> None:
    assert run(CLEAN_UP_INTERRUPTED_AGAIN).stdout == "cleaned up\nunwound 143\n"


def test_a_clean_up_that_hangs_is_given_up() -> None:
    ended = run(CLEAN_UP_THAT_HANGS)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize("code", [INTERRUPTED_IN_AN_IMPORT, INTERRUPTED_IN_AN_IMPORT_OF_A_COMMAND])
def test_what_python_makes_an_error_of_is_still_an_interrupt(code: str) -> None:
    ended = run(NAMED + code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")

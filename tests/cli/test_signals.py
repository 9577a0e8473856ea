"""The unwinding itself, where Python makes it hard."""

from __future__ import annotations

import subprocess
import sys

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


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_what_a_finalizer_swallowed_is_raised_again() -> None:
    assert run(INTERRUPTED_IN_A_FINALIZER).stdout == "unwound 130\n"


def test_clean_up_is_not_interrupted() -> None:
    assert run(CLEAN_UP_INTERRUPTED_AGAIN).stdout == "cleaned up\nunwound 143\n"


def test_a_clean_up_that_hangs_is_given_up() -> None:
    ended = run(CLEAN_UP_THAT_HANGS)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")

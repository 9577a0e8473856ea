"""Clocks and randomness are given to what decides by them.

An object with state that decides by time takes ``clock_s`` (monotonic seconds) or ``now_ms`` (milliseconds since 1970)
as an argument of its constructor, with the machine's clock as the default; one that decides by chance takes ``rng``, a
``random.Random``. So tests and simulations decide what time it is, and do not wait. ``time.perf_counter`` may be called
anywhere to measure how long something took; ``secrets`` may be, as nobody should decide what it returns.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
CLOCKS = {
    *("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns"),
    *("storage.clocks.monotonic_s", "storage.clocks.wall_ms"),
}

MAY_CALL = {
    # The machine's own clocks and random bytes, which are the defaults everywhere else.
    "storage/clocks.py",
    "storage/runtime.py",
    # Deadlines for gRPC and pauses before retries: a client waits for servers, so tests of it wait as well.
    "taskworker/client/deadline.py",
    # They wait for the kernel or for another process, within one function.
    "taskworker/cli/signals.py",
    "taskworker/sandbox/answering.py",
    "taskworker/sandbox/endings.py",
    "taskworker/sandbox/listening.py",
    "taskworker/sandbox/pids_cgroup.py",
    # It waits for locks of files, and compares the times of files with the clock of the file system's machine.
    "taskworker/sandbox/tree_cache.py",
    # The process of a call inside a sandbox, which is told only how many seconds are left.
    "taskworker/sandbox/inside/facade.py",
    "taskworker/sandbox/inside/program.py",
    # Commands that read or show ages, at the moment at which they run.
    "taskworker/cli/audit.py",
    "taskworker/cli/functions.py",
    "taskworker/cli/pool_status.py",
    "taskworker/cli/secrets.py",
    "taskworker/cli/tokens.py",
}


def test_no_other_module_calls_a_clock_or_rolls_dice_directly() -> None:
    sources = [path for package in ("storage", "taskworker") for path in sorted((TOP / package).rglob("*.py"))]
    assert len(sources) > 300
    found = {str(path.relative_to(TOP)): [*_calls(path.read_text())] for path in sources}
    assert {name: calls for name, calls in found.items() if calls and name not in MAY_CALL} == {}
    assert [name for name in MAY_CALL if not found[name]] == [], "modules that need not be listed any more"


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("import time\ndef f(): return time.monotonic() + 1", ["2: time.monotonic"]),
        ("import time as t\nf = lambda: t.time_ns() // 1000", ["2: time.time_ns"]),
        ("from time import time\nx = [time()]", ["2: time.time"]),
        ("import random\nrandom.sample([1], 1)", ["2: random.sample"]),
        ("from random import uniform as any_of\nclass A:\n  x = any_of(0, 1)", ["3: random.uniform"]),
        ("from datetime import datetime\ndatetime.now()", ["2: datetime.datetime.now"]),
        ("import time\ndef f(clock_s=time.monotonic): return clock_s()", []),
        ("import time, random\ntime.sleep(1)\ntime.perf_counter()\nrng = random.Random(5)\nrng.random()", []),
        ("from storage.clocks import wall_ms\nnow = wall_ms()", ["2: storage.clocks.wall_ms"]),
        ("from storage.clocks import wall_ms\ndef f(now_ms=wall_ms): return now_ms()", []),
        ("import secrets\nsecrets.token_hex()", []),
    ],
)
def test_direct_calls_are_found(source: str, calls: list[str]) -> None:
    assert [*_calls(source)] == calls


def _calls(source: str) -> Iterator[str]:
    """The calls of a module that ask the machine for the time or for a random choice, with their lines."""
    module = ast.parse(source)
    names = dict(_imported(module))
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            called = f"{names.get(first, '')}.{rest}".rstrip(".")
            if called in CLOCKS or _is_random(called) or called.endswith(("datetime.now", "datetime.utcnow")):
                yield f"{node.lineno}: {called}"


def _is_random(called: str) -> bool:
    return called.startswith("random.") and called != "random.Random"


def _imported(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Names in the module, and what each stands for."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)

"""Kills a rotation of the master key at each step that it takes: ``python -m tests.secrets.crashing DIRECTORY``.

A process is forked for each step, in which the rotation ends just before it, without any unwinding. What is then on
disk is opened, by another process, and told as a line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType

from tests.secrets.kept import secrets_in

VALUES = {"one": "first value", "two": "second value\n" * 50}
KILLED = 9
_DISK = ("posix", "_io", "Environment", "Transaction", "Cursor")


def main() -> None:
    """Print a line for each step of a rotation of the secrets in a directory."""
    directory = Path(sys.argv[1])
    before, after = directory / "before", directory / "after"
    with secrets_in(before) as kept:
        for name, value in VALUES.items():
            kept.set(name, value)
            kept.grant(name, "f")
    step = 0
    while _crashed(before, after, step):
        step += 1


def _crashed(before: Path, after: Path, step: int) -> bool:
    shutil.rmtree(after, ignore_errors=True)
    shutil.copytree(before, after)
    ended = _forked(lambda: _rotate(after, step))
    assert ended in (KILLED, 0)
    print(json.dumps({"step": step, "killed": ended == KILLED, "left": _keys(after)}), flush=True)
    assert _forked(lambda: _look(after, again=step % 8 == 0)) == 0, f"after a crash at step {step}"
    return ended == KILLED


def _rotate(directory: Path, last: int) -> int:
    steps = 0

    def count(_frame: FrameType, event: str, called: object) -> None:
        nonlocal steps
        # All that a process does to its disk, it does by a call into one of these.
        if event == "c_call" and _home_of(called) in _DISK:
            if steps == last:
                os._exit(KILLED)
            steps += 1

    with secrets_in(directory) as kept:
        kept.check()
        sys.setprofile(count)
        kept.rotate_master()
        sys.setprofile(None)
    return 0


def _home_of(called: object) -> str:
    """The module of a function; of a method, the module of its class, or, as those of LMDB have none, its class."""
    owner = getattr(called, "__self__", None)
    if isinstance(owner, ModuleType):
        return owner.__name__
    cls = type(owner)
    return cls.__name__ if cls.__module__ == "builtins" else cls.__module__


def _look(directory: Path, *, again: bool) -> int:
    with secrets_in(directory) as kept:
        for name, value in VALUES.items():
            assert kept.get("f", name) == value
        assert _keys(directory) == 1, "the old key is forgotten once all is under the new one"
        assert sorted(path.name for path in directory.iterdir()) == ["catalog", "master.key"]
        if again:
            kept.rotate("one", VALUES["one"])
            kept.rotate_master()
            assert [kept.get("f", name) for name in VALUES] == list(VALUES.values())
    return 0


def _keys(directory: Path) -> int:
    return sum(not line.startswith("#") for line in (directory / "master.key").read_text().splitlines())


def _forked(run: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        try:
            code = run()
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()

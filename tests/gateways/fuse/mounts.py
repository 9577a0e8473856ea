"""Real mounts, by real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cluster.processes import Process

WHY_NOT = next(
    (
        reason
        for missing, reason in (
            (not os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse is missing or not ours to use"),
            (shutil.which("fusermount3") is None, "fusermount3 is missing: install fuse3"),
            (find_spec("mfusepy") is None, "mfusepy is missing: install the extra mount"),
        )
        if missing
    ),
    "",
)
needs_fuse = pytest.mark.skipif(bool(WHY_NOT), reason=f"NOTHING IS MOUNTED IN THIS RUN: {WHY_NOT}")


@contextlib.contextmanager
def mounted(directory: Path, *arguments: str) -> Iterator[Process]:
    """A mount on a directory, which is made; afterwards nothing is left of it."""
    directory.mkdir()
    process = Process(["mount", str(directory), *arguments], directory.with_suffix(".log"))
    try:
        yield process
    finally:
        process.kill()
        unmount(directory)


def unmount(directory: Path) -> None:
    """Unmount a directory, even if somebody uses it."""
    subprocess.run(["fusermount3", "-u", "-z", directory], check=False, stderr=subprocess.DEVNULL)

"""Full disks: StoreFull, everything stored still readable, room again after delete and collect.

On a small file system where one can be mounted: in a mount namespace of the process that uses it, so that it
is gone with that process, however that ends. Besides, with a limit on the size of files (RLIMIT_FSIZE).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 300
FILE_BYTES_MAX = 1 << 20
_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def namespace() -> list[str]:
    """The command that runs another one where it may mount."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", "--mount", *user, "sh", "-c", _MOUNT, "sh"]


@cache
def can_mount(directory: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*namespace(), "1m", str(directory), "true"]
    return subprocess.run(command, check=False, capture_output=True, timeout=TIMEOUT_S).returncode == 0


def run(command: list[str], scenario: str, directory: Path, *arguments: str) -> None:
    program = [sys.executable, "-m", "tests.crash.full_disk", scenario, str(directory), *arguments]
    process = subprocess.run(
        [*command, *program], check=False, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=REPOSITORY
    )
    assert process.returncode == 0, process.stderr[-6000:]
    assert process.stdout.endswith("done\n")


@pytest.mark.parametrize(
    ("scenario", "size"),
    [
        ("push", "48m"),
        ("large_segments", "160m"),
        ("revise", "48m"),
        ("repair", "48m"),
        ("others", "48m"),
        ("one_volume", "12m"),
        ("catalog", "16m"),
        ("stream", "160m"),
    ],
)
def test_on_a_small_file_system(tmp_path: Path, scenario: str, size: str) -> None:
    if not can_mount(tmp_path.parent):
        pytest.skip("no file system can be mounted here; the limit on file sizes is tested in its place")
    run([*namespace(), size, str(tmp_path)], scenario, tmp_path)
    assert not list(tmp_path.iterdir()), "the file system was mounted for everybody"


@pytest.mark.parametrize("scenario", ["push", "revise", "names"])
def test_with_a_limit_on_file_sizes(tmp_path: Path, scenario: str) -> None:
    run([], scenario, tmp_path, str(FILE_BYTES_MAX))


def test_a_push_that_was_cut_off_gives_its_room_back(tmp_path: Path) -> None:
    run([], "cut_off", tmp_path)

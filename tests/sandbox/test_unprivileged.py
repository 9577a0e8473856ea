"""The same isolation for a worker that is an ordinary user, which needs user namespaces and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

ROOT = Path(__file__).parents[2]
NOBODY = "65534"
TOOLS = ("unshare", "mount", "setpriv")
AS_NOBODY = """
set -e
mount -t tmpfs none /mnt
mkdir /mnt/python /mnt/packages /mnt/repository
mkdir -m 1777 /mnt/tmp
mount --bind "$PREFIX" /mnt/python
mount --bind "$PACKAGES" /mnt/packages
mount --bind "$REPOSITORY" /mnt/repository
cd /mnt/repository
exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups "$@"
"""
"""Interpreter, packages and repository where that user can read them, in a mount namespace of its own."""
TESTS = (
    "tests/sandbox/test_calls.py::test_a_result_is_what_the_program_gives",
    "tests/sandbox/test_calls.py::test_the_standard_library_works",
    "tests/sandbox/test_escapes.py",
    "tests/sandbox/test_user_limits.py",
)
SOME_ATTACKS = (
    "mount or namespace or socket or fork or clone or signal or trace or bundles or private "
    "or right or root or many or answers"
    " or device or pipe or memory or limit or timers or thread or judge"
)


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests run as an ordinary user as it is")
@pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}")
def test_an_ordinary_user_is_kept_in_as_well() -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PREFIX": sys.base_prefix,
        "PACKAGES": str(Path(pydantic.__file__).parents[1]),
        "REPOSITORY": str(ROOT),
        "USER_ID": NOBODY,
        "HOME": "/mnt/tmp",
        "TMPDIR": "/mnt/tmp",
        "PYTHONPATH": "/mnt/packages:/mnt/repository",
        "LD_LIBRARY_PATH": f"/mnt/python/{sys.platlibdir}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    interpreter = f"/mnt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    tests = [
        interpreter,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        f"test_a or test_the_standard or {SOME_ATTACKS}",
        *TESTS,
    ]
    ran = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", AS_NOBODY, "sh", *tests],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-5000:]
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout

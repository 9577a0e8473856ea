"""If standard descriptors are closed, no file of a store gets their numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage.helpers import python_environment

PROGRAM = """
import os, sys
for descriptor in map(int, sys.argv[2]):
    os.close(descriptor)
from storage import FileStorage
store = FileStorage.open(sys.argv[1])
for number in range(3):
    store.push(os.urandom(200_000), filename=f"f{number}", user_id="u")
places = {os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in map(int, sys.argv[2])}
reads, writes = [], []
for descriptor in map(int, sys.argv[2]):
    try:
        os.read(descriptor, 1) if descriptor == 0 else os.write(descriptor, b"x")
    except OSError as error:
        reads.append(os.strerror(error.errno))
store.close()
with open(sys.argv[3], "w") as said:
    print(sorted(places), reads, file=said)
"""


@pytest.mark.parametrize("closed", ["0", "12", "012"])
def test_a_store_opens_nothing_in_their_place(root: Path, tmp_path: Path, closed: str) -> None:
    said = tmp_path / "said"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), closed, str(said)],
        env=python_environment(), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert said.read_text() == f"['/dev/null'] {['Bad file descriptor'] * len(closed)}\n"

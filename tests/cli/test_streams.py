"""Commands whose standard streams are closed, as by cron, daemons and wrappers."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRAM, TIMEOUT_S, Cli
from tests.storage.helpers import content

DATA = content(1, 300_000)


def redirected(cli: Cli, arguments: str, redirect: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command by a shell that closes some of its streams."""
    command = f"exec {shlex.join(PROGRAM)} {arguments} {redirect}"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert b"None" not in done.stderr
    return done


@pytest.fixture
def stored(embedded: Cli) -> Cli:
    """A store with a file ``f``, which is also here."""
    (embedded.directory / "f").write_bytes(DATA)
    embedded.run("push", "f")
    return embedded


def files_with(data: bytes, directory: Path) -> list[str]:
    """Files of a store, but for its segments, that hold this data."""
    return [
        path.name
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".seg" and data[:64] in path.read_bytes()
    ]


def test_no_input_is_not_taken_for_an_empty_one_or_for_a_file_of_the_store(stored: Cli) -> None:
    done = redirected(stored, "push - --name in", "<&-")
    assert done.returncode == 2
    assert b"standard input is closed" in done.stderr
    stored.run("stat", "in", code=3)


def test_content_without_an_output_goes_nowhere_and_the_exit_code_says_so(stored: Cli) -> None:
    assert redirected(stored, "get f -o -", ">&-").returncode == 2
    assert redirected(stored, "get f -o -", "<&- >&- 2>&-").returncode == 2
    assert files_with(DATA, stored.directory.parent) == ["f"]
    assert redirected(stored, "ls", ">&-").returncode == 2
    assert redirected(stored, "status --json", ">&-").returncode == 2


def test_what_needs_no_output_is_done_and_the_exit_code_says_so(stored: Cli) -> None:
    assert redirected(stored, "push f --name g", ">&-").returncode == 0
    assert redirected(stored, "get g -o out", "2>&-").returncode == 0
    assert (stored.directory / "out").read_bytes() == DATA
    assert redirected(stored, "rm g", "<&- >&- 2>&-").returncode == 0
    assert stored.names() == ["f"]


def test_a_secret_is_not_set_to_nothing(stored: Cli) -> None:
    del stored.variables["TASKWORKER_STORE"]
    done = redirected(stored, "--pool unix:nowhere secret set name", "<&-")
    assert done.returncode == 2
    assert b"standard input is closed" in done.stderr


def test_a_server_needs_none_of_them(stored: Cli) -> None:
    command = f"exec {shlex.join(PROGRAM)} serve --listen unix:socket <&- >&- 2>&-"
    server = subprocess.Popen(["sh", "-c", command], cwd=stored.directory, env=stored.environment)
    try:
        del stored.variables["TASKWORKER_STORE"]
        stored.variables["TASKWORKER_POOL"] = "unix:socket"
        while not (stored.directory / "socket").exists():
            assert server.poll() is None
            time.sleep(0.01)
        stored.run("get", "f", "-o", "out")
        assert stored.read("out") == DATA
    finally:
        server.terminate()
        server.wait(TIMEOUT_S)
    assert server.returncode == 0

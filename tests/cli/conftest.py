"""The command line as its users meet it: real processes, on an embedded store and on a served one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import forked

TIMEOUT_S = 120  # against hanging; nothing here depends on speed
PROGRAM = (sys.executable, "-m", "taskworker")


@dataclass(frozen=True, slots=True)
class Cli:
    """Runs ``taskworker`` in a directory of its own, for a user of its own."""

    directory: Path
    variables: dict[str, str]
    user: str

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKWORKER_")}
        return inherited | {"TASKWORKER_USER": self.user, "COLUMNS": "200"} | self.variables

    def start(self, *arguments: str | os.PathLike[str], stdin: int | None = subprocess.PIPE) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=self.directory,
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(
        self, *arguments: str | os.PathLike[str], stdin: bytes = b"", code: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end and insist on the exit code."""
        ended = forked.run(arguments, cwd=self.directory, env=self.environment, stdin=stdin, timeout_s=TIMEOUT_S)
        assert ended.returncode == code, f"{arguments}: exit code {ended.returncode}, {ended.stderr.decode()}"
        assert b"Traceback" not in ended.stderr
        return ended

    def text(self, *arguments: str | os.PathLike[str], stdin: bytes = b"", code: int = 0) -> str:
        return self.run(*arguments, stdin=stdin, code=code).stdout.decode()

    def error(self, *arguments: str | os.PathLike[str], stdin: bytes = b"", code: int) -> str:
        """The one line that a failing command says."""
        said = self.run(*arguments, stdin=stdin, code=code).stderr.decode()
        assert said.startswith("taskworker: ")
        assert said.count("\n") == 1
        return said

    def json(self, *arguments: str | os.PathLike[str], stdin: bytes = b"", code: int = 0) -> Any:
        return json.loads(self.text(*arguments, "--json", stdin=stdin, code=code))

    def write(self, name: str, content: bytes | bytearray) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def names(self) -> list[str]:
        return [version["filename"] for version in self.json("ls")]


@contextmanager
def serving(cli: Cli, store: Path, *options: str) -> Iterator[str]:
    """A server process on ``store``; gives its address, and must end well when asked to."""
    process = forked.Command(
        ["--store", store, "serve", "--listen", "127.0.0.1:0", "--json", *options],
        cwd=cli.directory,
        env=cli.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        announced = os.read(process.stdout.fileno(), 4096)
        yield json.loads(announced)["address"]
    finally:
        process.terminate()
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err.decode()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("server")
    with serving(Cli(directory, {}, "server"), directory / "store") as address:
        yield address


@pytest.fixture(params=["embedded", "served"])
def cli(request: pytest.FixtureRequest, tmp_path: Path) -> Cli:
    """On an empty embedded store, then on a server whose store other tests use as other users."""
    directory = tmp_path / "here"
    directory.mkdir()
    if request.param == "embedded":
        variables = {"TASKWORKER_STORE": str(tmp_path / "store")}
    else:
        variables = {"TASKWORKER_POOL": request.getfixturevalue("server")}
    return Cli(directory, variables, f"user-{uuid.uuid4()}")


@pytest.fixture
def embedded(tmp_path: Path) -> Cli:
    """On an empty embedded store, ``store`` beside the directory the commands run in."""
    directory = tmp_path / "here"
    directory.mkdir()
    return Cli(directory, {"TASKWORKER_STORE": str(tmp_path / "store")}, "ann")

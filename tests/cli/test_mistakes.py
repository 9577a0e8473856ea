"""What is said of likely mistakes, and of outputs that cannot be written."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRAM, TIMEOUT_S, Cli


def to_full_disk(cli: Cli, *arguments: str) -> tuple[int, bytes]:
    """Run a command whose output cannot be written; return its exit code and what it says."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            cwd=cli.directory,
            env=cli.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"], ["stat", "f"], ["get", "f", "-o", "-"]], ids=" ".join)
def test_a_result_that_cannot_be_written_is_told_in_one_line(cli: Cli, arguments: list[str]) -> None:
    cli.run("push", "-", "--name", "f", stdin=b"x" * 10_000)
    assert to_full_disk(cli, *arguments) == (1, b"taskworker: standard output: No space left on device\n")


def test_help_that_nobody_reads_ends_as_a_closed_pipe_does(cli: Cli) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*PROGRAM, "--help"], stdout=writing, stderr=subprocess.PIPE, timeout=TIMEOUT_S, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_folder_that_is_named_as_a_file_is_pointed_out(cli: Cli) -> None:
    (cli.directory / "photos").mkdir()
    cli.write("photos/a", b"a")
    cli.run("push", "photos")
    for command in ["get"], ["stat"], ["log"], ["rm"], ["get", "photos/a"]:
        assert (
            "there is no file 'photos', but a folder: `taskworker get photos/`"
            in cli.run(*command, "photos", code=3).stderr.decode()
        )
    assert "but a folder" not in cli.error("get", "photo", code=3)


def test_a_folder_cannot_be_written_to_a_file(cli: Cli) -> None:
    (cli.directory / "photos").mkdir()
    cli.write("photos/a", b"a")
    cli.write("file", b"")
    cli.run("push", "photos")
    assert cli.error("get", "photos/", "-o", "file", code=1) == "taskworker: file: Not a directory\n"
    cli.run("folder", "snapshot", "photos")
    assert cli.error("folder", "restore", "photos", "-o", "file", code=1) == "taskworker: file: Not a directory\n"


def test_mistyped_commands(embedded: Cli) -> None:
    assert embedded.error("pus", code=2) == (
        "taskworker: No such command 'pus'. Did you mean 'push'? See `taskworker --help`\n"
    )
    assert "Value error" not in embedded.error("functions", "calculate", code=2)


def test_an_address_where_nobody_listens_is_told_in_plain_words(embedded: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    said = embedded.error("--pool", address, "ls", code=6)
    assert said.startswith(f"taskworker: no TaskWorker server answers at {address} (Connection refused); check the")


def test_a_token_or_link_of_another_form(server: str, embedded: Cli) -> None:
    assert "no token is given" in embedded.error("login", server, code=1)
    assert "tokens begin with `twu1.`" in embedded.error("login", server, stdin=b"nonsense", code=1)
    assert "links begin with `twl1.`" in embedded.error("--pool", server, "get", "--link", "nonsense", code=2)


@pytest.mark.parametrize("gateway", ["s3", "page"])
def test_a_gateway_says_which_address_is_in_use(server: str, embedded: Cli, gateway: str) -> None:
    pytest.importorskip("uvicorn")
    said = embedded.error("--pool", server, "gateway", gateway, "--listen", server, code=6)
    assert said.startswith(f"taskworker: cannot listen on {server} (Address already in use): is another server")


def test_a_catalog_that_is_whole_is_not_rebuilt(embedded: Cli) -> None:
    embedded.run("push", "-", "--name", "f", stdin=b"x")
    assert "is up to date, so there is nothing to rebuild" in embedded.error("rebuild", code=2)

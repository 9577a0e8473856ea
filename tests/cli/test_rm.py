"""rm: what it deletes, and when it asks first."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest

from storage import FileStorage
from tests.cli.conftest import PROGRAM, TIMEOUT_S, Cli


@pytest.fixture
def twins(cli: Cli) -> tuple[str, str]:
    """Ids of a file, and of another that is named like that id."""
    cli.write("f", b"first")
    first = cli.json("push", "f")[0]["file_id"]
    cli.write("f", b"second")
    return first, cli.json("push", "f", "--name", first)[0]["file_id"]


def on_a_terminal(cli: Cli, *arguments: str, answer: bytes) -> tuple[int, str]:
    """Run a command on a terminal and answer its question; its exit code, and what it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments], cwd=cli.directory, env=cli.environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
            if b"[y/N]" in piece:
                os.write(ours, answer + b"\n")
    except OSError:
        pass  # the terminal's other end was closed
    os.close(ours)
    return process.wait(TIMEOUT_S), shown.decode()


def test_an_id_that_is_also_a_name_is_not_taken_for_the_id_unasked(cli: Cli, twins: tuple[str, str]) -> None:
    first, second = twins
    said = cli.error("rm", first, code=2)
    assert second in said
    assert "--yes" in said
    assert sorted(cli.names()) == sorted(["f", first])
    assert cli.run("get", first, "-o", "-").stdout == b"first"  # ids come first, here as everywhere
    cli.run("rm", first, "--yes")
    assert cli.names() == [first]
    cli.run("rm", first)  # now it is the name alone
    assert cli.names() == []


def test_it_asks_on_a_terminal(embedded: Cli) -> None:
    embedded.write("f", b"x")
    first = embedded.json("push", "f")[0]["file_id"]
    embedded.run("push", "f", "--name", first)
    code, shown = on_a_terminal(embedded, "rm", first, answer=b"n")
    assert code == 1
    assert "nothing was deleted" in shown
    assert len(embedded.names()) == 2
    code, shown = on_a_terminal(embedded, "rm", first, answer=b"y")
    assert code == 0
    assert embedded.names() == [first]


def test_many_at_once(embedded: Cli) -> None:
    cli = embedded
    names = [f"n{number}" for number in range(40)]
    for name in names:
        cli.write(name, name.encode())
    cli.run("push", *names)
    said = cli.text("rm", *names[:35], names[0])
    assert said.startswith("deleted 35 files: n0, n1, ")
    assert "and 15 more" in said
    assert cli.names() == sorted(names[35:])
    cli.run("rm", "n36", "nothing", code=3)
    assert cli.names() == sorted(names[35:])


def test_one_version_is_deleted(embedded: Cli) -> None:
    with FileStorage.open(embedded.directory.parent / "store") as store:
        first, second = (store.push(data, filename="n", user_id="ann").version_id for data in (b"one", b"two"))
    assert embedded.json("rm", "n", "--version", second[:8])["head"] == first
    assert "has no version" in embedded.error("get", "n", "--version", second, "-o", "-", code=3)
    assert "exactly one file" in embedded.error("rm", "n", "m", "--version", first, code=2)
    assert "the file is deleted" in embedded.text("rm", "n", "--version", first)

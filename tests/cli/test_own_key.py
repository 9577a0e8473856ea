"""Commands on a server with a key of one's own, by which the server can read nothing."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storage.sealing.master_keys import new_key_file
from tests.cli.conftest import TIMEOUT_S, Cli

MIB = 1 << 20


@pytest.fixture
def keyless(server: str, tmp_path: Path) -> Cli:
    directory = tmp_path / "here"
    directory.mkdir()
    return Cli(directory, {"TASKWORKER_POOL": server}, f"user-{os.urandom(8).hex()}")


@pytest.fixture
def cli(keyless: Cli) -> Cli:
    """With the key named in the environment."""
    new_key_file(keyless.directory / "my-key")
    return replace(keyless, variables=keyless.variables | {"TASKWORKER_KEY_FILE": "my-key"})


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < give_up


def test_files_are_sealed_by_the_commands(cli: Cli, keyless: Cli) -> None:
    data = random.Random(1).randbytes(3 * MIB + 9)
    cli.write("报告.pdf", data)
    cli.run("push", "报告.pdf", "--note", "初稿")
    cli.write("b", b"b")
    cli.run("push", "报告.pdf", "b")
    cli.run("push", "-", "--name", "流", stdin=b"from a pipe")
    assert cli.names() == ["b", "报告.pdf", "流"]
    sealed = keyless.names()
    assert [name[:8] for name in sealed] == ["sealed1."] * 3
    assert cli.run("get", "报告.pdf", "-o", "-").stdout == data
    assert cli.run("get", "报告.pdf", "--range", "1048570-1048579", "-o", "-").stdout == data[1048570:1048580]
    cli.run("get", "报告.pdf", "b", "-o", "out/")
    assert cli.read("out/报告.pdf") == data
    assert [one["note"] for one in cli.json("log", "报告.pdf")] == ["", "初稿"]
    assert "give that key (key=, --key-file)" in keyless.error("get", sealed[0], "-o", "plain", code=1)
    new_key_file(cli.directory / "other")
    assert "is sealed with the key" in keyless.error("ls", "--key-file", "other", code=1)
    assert "is sealed with the key" in keyless.error("get", "b", "-o", "plain", "--key-file", "other", code=1)
    cli.error("get", "none", code=3)
    assert not (cli.directory / "plain").exists()
    assert "lacks the key" in cli.error("link", "create", "b", code=2)
    cli.run("rm", "b", "流")
    keyless.run("rm", *keyless.names())
    assert cli.names() == []


def test_a_copy_is_synchronized_both_ways(cli: Cli) -> None:
    data = bytearray(random.Random(1).randbytes(3 * MIB + 9))
    cli.write("n", data)
    assert cli.json("sync", "n")["outcome"] == "sent"
    data[2 * MIB] ^= 1
    cli.write("n", data)
    assert cli.json("sync", "n")["outcome"] == "sent"
    data[MIB] ^= 1
    cli.run("revise", "n", "-", stdin=bytes(data) + b"longer")
    assert cli.json("sync", "n")["outcome"] == "fetched"
    assert cli.read("n") == data + b"longer"
    os.utime(cli.directory / "n", (1, 1))
    assert cli.json("sync", "n")["outcome"] == "in_step"


def test_a_key_is_replaced_even_if_the_command_is_killed(cli: Cli, keyless: Cli) -> None:
    files = {f"f{number}": random.Random(number).randbytes(9 + 400_000 * (number % 3)) for number in range(12)}
    for name, data in files.items():
        cli.write(name, data[:-1])
    cli.run("push", *files)
    for name, data in files.items():
        cli.write(name, data)
    cli.run("push", *files, "--note", "second")
    (cli.directory / "former").write_bytes((cli.directory / "my-key").read_bytes())
    (cli.directory / "former").chmod(0o600)

    process = cli.start("rotate-own-key")
    wait_until(lambda: len({name[:20] for name in keyless.names()}) > 1)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    cli.run("get", *files, "-o", "between/")

    done = cli.json("rotate-own-key", "--drop-former")
    assert done["left"] == []
    assert done["former_keys"] == 0
    assert sum(not line.startswith(b"#") for line in cli.read("my-key").splitlines()) == 1
    cli.run("get", *files, "-o", "after/")
    for name, data in files.items():
        assert cli.read(f"between/{name}") == cli.read(f"after/{name}") == data
    with_former = replace(cli, variables=cli.variables | {"TASKWORKER_KEY_FILE": "former"})
    assert [one["note"] for one in cli.json("log", "f1")] == ["second", ""]
    assert "is sealed with the key" in with_former.error("ls", code=1)


def test_a_former_key_that_is_missing_or_needed_is_named(cli: Cli, keyless: Cli) -> None:
    cli.write("a", b"a")
    cli.run("push", "a")
    (former,) = {name.split(".")[1] for name in keyless.names()}
    (cli.directory / "former").write_bytes((cli.directory / "my-key").read_bytes())
    (cli.directory / "former").chmod(0o600)
    assert "1 file with 1 version stored anew" in cli.text("rotate-own-key")
    cli.run("push", "a", "--key-file", "former")
    cli.run("push", "a", "--name", "b", "--key-file", "former")
    lines = (cli.directory / "my-key").read_text().splitlines()
    (cli.directory / "only-new").write_text(lines[1] + "\n")
    (cli.directory / "only-new").chmod(0o600)
    assert former in cli.error("get", "b", "-o", "out", "--key-file", "only-new", code=3)
    said = cli.text("rotate-own-key", "--drop-former", code=1)
    assert "1 file with 1 version stored anew" in said
    assert "  a: there is another file of this name with the current key" in said
    assert "1 file still needs a former key, which stays in my-key" in said
    assert (cli.directory / "my-key").read_text().splitlines() == lines
    assert cli.names() == ["a", "b"]
    assert "--key-file FILE" in keyless.error("rotate-own-key", code=2)
    assert "rotate-key" in cli.error("rotate-own-key", "--store", "store", code=2)

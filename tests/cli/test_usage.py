"""What holds for all commands: options, help, errors, completion."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.models import CommandInfo
from typer.testing import CliRunner

from taskworker.cli import maintenance as maintenance
from taskworker.cli.app import app_for
from taskworker.cli.exits import ExitCode
from taskworker.cli.plain import plain_command
from taskworker.cli.session import Session, Settings
from tests.cli.conftest import TIMEOUT_S, Cli

COMMANDS = (
    "push", "get", "ls", "log", "stat", "revise", "sync", "rm", "status", "scrub", "repair", "collect", "rebuild",
    "snapshot", "call", "functions", "deploy", "undeploy", "logs", "secret", "egress", "layout", "drain", "forget",
    "resolve", "up", "pool", "worker", "serve", "demo",
)  # fmt: skip


def every_command() -> list[list[str]]:
    """The words that name each command, those in groups included."""
    app = app_for(())
    named = [[name(one)] for one in app.registered_commands]
    for group in app.registered_groups:
        assert group.name
        assert group.typer_instance
        named += [[group.name, name(one)] for one in group.typer_instance.registered_commands]
    return named


def name(command: CommandInfo) -> str:
    assert command.callback
    return command.name or command.callback.__name__


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_help_with_examples(words: list[str]) -> None:
    shown = CliRunner().invoke(app_for(words), [*words, "--help"], env={"COLUMNS": "120"}).output
    assert "Examples:" in shown
    spoken = " ".join(words).replace("worker-", "worker ")  # two words, which are one to the parser
    assert re.search(rf"taskworker (--\S+ \S+ )*{spoken}", shown)
    assert "--json" in shown
    assert not re.search(r"<(bool|str|int|float|list)\b", shown)  # what Python calls a value tells a person nothing
    for line in shown.splitlines():
        assert not re.search(r"\[(default|env)\b", line) or "]" in line


def test_help_lists_every_command(embedded: Cli) -> None:
    shown = embedded.text("--help")
    assert all(f" {command} " in shown for command in COMMANDS)
    assert embedded.text("--version").startswith("taskworker")


def test_wrong_usage(embedded: Cli) -> None:
    assert "no such command" in embedded.error("frobnicate", code=2).lower()
    embedded.error("get", code=2)
    embedded.error("get", "--frobnicate", "x", code=2)
    embedded.error("push", "x", "--k", "many", code=2)
    embedded.run(code=2)


def test_options_before_and_after_the_command(embedded: Cli) -> None:
    embedded.run("push", "-", "--name", "x", "--user", "bob", stdin=b"x")
    for arguments in (("--user", "bob", "ls", "--json"), ("--json", "ls", "--user", "bob")):
        assert '"x"' in embedded.text(*arguments)
    assert embedded.text("--user", "bob", "ls", "--user", "eve", "--json") == "[]\n"


def test_where_the_store_is(embedded: Cli, tmp_path: Path) -> None:
    other = tmp_path / "other"
    embedded.run("push", "-", "--name", "x", "--store", other, stdin=b"x")
    assert embedded.text("ls", "--store", other).endswith("x\n")
    embedded.error("ls", "--store", tmp_path / "nowhere", code=3)
    embedded.error("ls", "--store", other, "--pool", "127.0.0.1:9", code=2)
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_that_is_no_store_stays_as_it_is(embedded: Cli, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "mine").write_bytes(b"x")
    embedded.error("ls", "--store", plain, code=3)
    assert os.listdir(plain) == ["mine"]


def test_no_server(embedded: Cli) -> None:
    assert "127.0.0.1:9" in embedded.error("ls", "--pool", "127.0.0.1:9", code=6)
    embedded.error("ls", "--pool", "no address", code=2)


def test_a_port_that_is_taken_is_told_in_one_line(embedded: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = embedded.run("serve", "--listen", address, code=6).stderr.decode()
    assert told.splitlines() == [
        f"taskworker: cannot listen on {address}: is another server running there? Stop it, or choose another address"
    ]


def test_debug_shows_the_place_of_an_error(embedded: Cli, tmp_path: Path) -> None:
    process = embedded.start("ls", "--debug", "--store", str(tmp_path / "nowhere"))
    _, err = process.communicate()
    assert process.returncode == 3
    assert b"Traceback" in err


def test_a_reader_that_stops_early(embedded: Cli) -> None:
    embedded.run("push", "-", "--name", "x", stdin=bytes(5_000_000))
    with embedded.start("get", "x", "-o", "-") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == bytes(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(TIMEOUT_S) == 141


def test_narrow_encodings_do_not_break_output(embedded: Cli) -> None:
    embedded.run("push", "-", "--name", "文件", stdin=b"x")
    narrow = Cli(embedded.directory, embedded.variables | {"PYTHONIOENCODING": "ascii"}, embedded.user)
    assert "\\u6587\\u4ef6" in narrow.text("ls")
    assert narrow.error("get", "文件夹", code=3)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(embedded: Cli, shell: str) -> None:
    variables = {"_TASKWORKER_COMPLETE": f"source_{shell}"}
    script = Cli(embedded.directory, embedded.variables | variables, "ann").text()
    assert "_TASKWORKER_COMPLETE" in script
    assert "taskworker" in script


def complete(cli: Cli, line: str) -> list[str]:
    words = line.split(" ")
    variables = {"_TASKWORKER_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return Cli(cli.directory, cli.variables | variables, cli.user).text().split()


def test_completion_of_commands_options_and_names(cli: Cli) -> None:
    cli.run("push", "-", "--name", "report.pdf", stdin=b"x")
    cli.run("push", "-", "--name", "other", stdin=b"x")
    assert complete(cli, "taskworker re") == ["revise", "repair", "rebuild", "resolve"]
    assert complete(cli, "taskworker get --ra") == ["--range"]
    assert complete(cli, "taskworker get rep") == ["report.pdf"]
    assert complete(cli, "taskworker log --store /nowhere rep") == []


def test_light_commands_load_nothing_heavy() -> None:
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "taskworker", "--version"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    # The package of the engine loads its names when they are used; besides it, only what the standard streams need.
    for heavy in ("grpc", r"storage\.(?!lazily$|system$|system\.descriptors$).*", r"rich\.progress", "asyncio", "lmdb"):
        assert not re.search(rf"\| +{heavy}$", imported, re.MULTILINE), heavy


def test_embedded_commands_do_without_the_network_and_pydantic(embedded: Cli) -> None:
    embedded.run("push", "-", "--name", "x", stdin=b"x")
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "taskworker", "ls"],
        capture_output=True,
        text=True,
        check=True,
        env=embedded.environment,
        cwd=embedded.directory,
    ).stderr
    assert not re.search(r"\| +(grpc|google\.protobuf|pydantic)$", imported, re.MULTILINE)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_output_that_cannot_be_written_is_told_in_one_line(option: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "taskworker", option],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "taskworker: standard output: No space left on device\n")


_PLAIN: tuple[list[str], ...] = (
    [],
    ["--json"],
    ["--pool", "a:1", "--debug"],
    ["--pool=a:1", "--user", "ann"],
    ["--user=a=b"],
    ["--user", "status"],
)


@pytest.mark.parametrize("before", _PLAIN)
@pytest.mark.parametrize("after", _PLAIN)
def test_a_plain_command_means_what_it_does_to_the_whole_parser(
    monkeypatch: pytest.MonkeyPatch, before: list[str], after: list[str]
) -> None:
    met: list[Settings] = []

    def status(session: Session) -> None:
        met.append(session.settings)

    arguments = [*before, "status", *after]
    plain = plain_command(arguments)
    monkeypatch.setattr(maintenance, "status", status)
    app_for(arguments)(arguments, standalone_mode=False)
    assert plain is None or [plain.settings] == met
    assert (plain is None) == ("status" in before)


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--help"],
        ["status", "--watch"],
        ["status", "more"],
        ["status", "status"],
        ["status", "--pool"],
        ["status", "--pool="],
        ["status", "--pool", "--json"],
        ["status", "--json=yes"],
        ["status", "--json", "--json"],
        ["status", "--store", "there"],
        ["status", "--"],
        ["status", "-h"],
        ["--version", "status"],
        ["ls"],
        [],
    ],
)
def test_what_more_is_said_is_left_to_the_whole_parser(arguments: list[str]) -> None:
    assert plain_command(arguments) is None


def test_a_plain_command_loads_no_parser_of_values(embedded: Cli) -> None:
    program = (
        "import sys; from taskworker.cli.app import run; code = run(); "
        "sys.exit(code if not {'pydantic', 'rich', 'taskworker.store_pb2_grpc'} & set(sys.modules) else 99)"
    )
    asked = [sys.executable, "-c", program, "status", "--pool", "127.0.0.1:1"]
    ended = subprocess.run(asked, env=embedded.environment, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == ExitCode.UNAVAILABLE, ended.stderr


def _numeric_options() -> list[tuple[list[str], str, type]]:
    """(command, option, kind) of all options that take a number."""
    found = []

    def walk(command: Any, words: list[str]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, [*words, name])
        for parameter in command.params:
            told = getattr(parameter, "type_descriptor", None)
            if told is not None and told.annotation in (int, float):
                found.append((words, parameter.opts[0], told.annotation))

    walk(typer.main.get_command(app_for(["--help"])), [])
    return found


def _too_large() -> Iterator[list[str]]:
    """Commands with numbers that nothing can count."""
    needed = {
        "push": ["-", "--name", "x"],
        "call": ["f"],
        "deploy": ["f", "app:f"],
        "logs": ["f"],
        "log": ["x"],
        "resolve": ["a.b"],
    }
    for words, option, kind in _numeric_options():
        yield [*words, *needed.get(words[-1], []), option, "inf" if kind is float else "9" * 20]
    yield ["deploy", "f", "app:f", "--limits", f"memory={'9' * 400}MiB"]
    yield ["deploy", "f", "app:f", "--limits", f"wall={'9' * 400}"]
    yield ["pool", "--user-calls", "9" * 5000]
    yield ["pool", "--user-weight", "ann=nan"]
    yield ["logs", "f", "--since", f"{'9' * 400}d"]


_RUN_ALL = """
import contextlib, io, json, sys
from taskworker.cli.app import run

for arguments in json.load(sys.stdin):
    sys.argv = ["taskworker", *arguments]
    with contextlib.redirect_stderr(io.StringIO()) as told:
        code = run()
    print(json.dumps([code, told.getvalue()]), flush=True)
"""


def test_numbers_that_nothing_can_count_are_refused(tmp_path: Path) -> None:
    """All in one process of their own; none gets as far as to do anything."""
    commands = list(_too_large())
    assert len(commands) > 35
    (tmp_path / "app.py").write_text("def f():\n    return 1\n")
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=TIMEOUT_S,
        check=False,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(commands), done.stderr
    for command, (code, told) in zip(commands, outcomes, strict=True):
        assert code == ExitCode.USAGE, (command, told)
        assert not re.search("Value out of range|infinity|string conversion|Traceback", told), (command, told)

"""What the commands for functions show."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator

import lmdb
import pytest

from tests import forked
from tests.functions.processes import USER, WAIT_S, FunctionPool
from tests.functions.wheels import made_wheel

COLUMNS = 100
MODULE = """
import logging
import time

from taskworker.inside import worker


def add(a: int, b: int) -> int:
    return a + b


def configured():
    return dict(worker.config)


def counts(to: int):
    for number in range(to):
        yield f"line {number}"
    time.sleep(3600)


def makes(name, text):
    with open("made", "w") as file:
        file.write(text)
    return worker.result_file("made", name)


def fails(text):
    print("working on", text)
    logging.warning("this will not end well")
    raise ValueError(text + "\\ntaskworker: forged")


def meets(limit):
    import threading
    from pathlib import Path

    if limit == "result":
        return "x" * 2000
    if limit == "disk":
        Path("large").write_bytes(bytes(2 << 20))
    if limit == "files":
        opened = [open("small", "w") for _ in range(99)]
    if limit == "threads":
        for _ in range(9):
            threading.Thread(target=time.sleep, args=(9,)).start()
        time.sleep(9)


def lies(digits: int):
    import struct
    import sys

    result = b"1" * digits
    sys.modules["os"].write(3, struct.pack("!BI", 3, len(result)) + result)
    time.sleep(3600)
"""


class Commands:
    """The command line, for a pool."""

    def __init__(self, pool: FunctionPool) -> None:
        self.pool = pool

    def run(self, *words: str, code: int = 0) -> tuple[list[str], list[str]]:
        """Lines on stdout and stderr."""
        done = forked.run(
            [*words, "--pool", self.pool.address, "--user", USER],
            cwd=self.pool.directory,
            env={name: value for name, value in os.environ.items() if not name.startswith("TASKWORKER_")},
            timeout_s=WAIT_S,
        )
        assert done.returncode == code, done.stderr
        return done.stdout.decode().splitlines(), done.stderr.decode().splitlines()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    directory = tmp_path_factory.mktemp("commands")
    (directory / "app.py").write_text(MODULE)
    with FunctionPool(directory, pool_options=["--limits-max", "wall=7200"]) as pool:
        pool.await_whole()
        commands = Commands(pool)
        for name in ("add", "fails"):
            commands.run("deploy", name, f"app:{name}")
            pool.await_workers(name, 3)
        yield commands


def test_an_error_of_a_function_is_shown_with_its_frames(commands: Commands) -> None:
    _, told = commands.run("call", "fails", "no way", code=1)
    assert told == [
        "taskworker: ValueError: no way",
        "  taskworker: forged",
        '  app/app.py:31 in fails: raise ValueError(text + "\\ntaskworker: forged")',
    ]


def test_the_log_shows_what_was_printed_and_how_calls_ended(commands: Commands) -> None:
    commands.run("call", "fails", "again", code=1)
    shown, _ = commands.run("logs", "fails")
    at = next(number for number, line in enumerate(shown) if "working on again" in line)
    assert [line[28:] for line in shown[at:]] == [
        "   working on again",
        " ! WARNING root: this will not end well",
        " * FunctionFailed: ValueError: again",
        " *   taskworker: forged",
        ' *   app/app.py:31 in fails: raise ValueError(text + "\\ntaskworker: forged")',
    ]
    assert all(not line.startswith("taskworker") for line in shown)
    assert commands.run("logs", "add") == ([], [])
    _, told = commands.run("logs", "nosuch", code=3)
    assert told == ["taskworker: there is no function nosuch, and no log of one with this name"]


def test_a_deployment_that_fails_says_what_to_do(commands: Commands) -> None:
    home = commands.pool.directory / "faulty"
    home.mkdir()
    (home / "lacking.py").write_text("import no_such_package\n\n\ndef f():\n    return 1\n")
    (home / "whole.py").write_text("def handler():\n    return 1\n")
    (home / "requirements.txt").write_text("no-such-package==1.0\n")
    place = ("--dir", "faulty")
    _, told = commands.run("deploy", "faulty", "lacking:f", *place, code=1)
    assert told[-1].endswith("if a package has it, name the package in a requirements file (--requirements FILE)")
    _, told = commands.run("deploy", "faulty", "whole:handlr", *place, code=1)
    assert told[0].endswith("module 'whole' has no 'handlr'; is 'handler' meant?")
    _, told = commands.run("deploy", "faulty", "whole.py:handler", *place, code=2)
    assert told == ["taskworker: 'whole.py:handler' names a file: write whole:handler"]
    wheels = ("--requirements", "faulty/requirements.txt")
    _, told = commands.run("deploy", "faulty", "whole:handler", *place, *wheels, code=2)
    assert told[0].startswith("taskworker: pip could not install faulty/requirements.txt")
    assert any(line.startswith("  ERROR: ") and "no-such-package==1.0" in line for line in told[1:])


def test_a_limit_that_is_met_says_how_it_is_raised(commands: Commands) -> None:
    for limits, what, code, text in (
        ("result=1KiB", "result", 1, "result limit of 1 KiB exceeded; return worker.result_file(path)"),
        (
            "disk=1MiB",
            "disk",
            1,
            "File too large (this call has reached its limit disk; `deploy --limits disk=...` allows more)",
        ),
        ("files=16", "files", 1, "(this call has reached its limit files; `deploy --limits files=...` allows more)"),
        ("threads=2", "threads", 1, "threads limit of 2 exceeded; `deploy --limits threads=...`"),
    ):
        commands.run("deploy", "meets", "app:meets", "--limits", limits)
        _, told = commands.run("call", "meets", what, code=code)
        assert text in told[0]
    commands.run("undeploy", "meets")


def test_own_modules_and_data_travel_and_a_dry_run_lists_them(commands: Commands) -> None:
    home = commands.pool.directory / "words"
    (home / "pages").mkdir(parents=True)
    (home / "pages" / "title.txt").write_text("Title")
    (home / "own_sibling.py").write_text(
        "from pathlib import Path\n\nTEXT = (Path(__file__).parent / 'pages' / 'title.txt').read_text()\n"
    )
    (home / "words.py").write_text("def f():\n    import own_sibling\n\n    return own_sibling.TEXT\n")
    words = ("deploy", "words", "words:f", "--dir", "words", "--include", "pages/*.txt")
    listed, _ = commands.run(*words, "--dry-run")
    assert [line.split()[-1] for line in listed[:-1]] == ["app/own_sibling.py", "app/pages/title.txt", "app/words.py"]
    assert listed[-1].startswith("words would be 3 files, ")
    wheel = made_wheel(home, "greeting", {"greeting/__init__.py": "", "greeting/one.py": "", "greeting/two.py": ""})
    (home / "requirements.txt").write_text(f"{wheel}\n")
    dry = (*words, "--requirements", str(home / "requirements.txt"), "--dry-run")
    listed, _ = commands.run(*dry)
    own, package, total = listed[:3], listed[3], listed[4]
    assert all(" app/" in line for line in own)
    assert package.split(maxsplit=2)[-1].startswith("package greeting==1.2, ")
    assert total.endswith("with 1 package")
    listed, _ = commands.run(*dry, "--verbose")
    assert any(line.endswith(" dependencies/greeting/two.py") for line in listed)
    commands.run("call", "words", code=3)
    commands.run(*words)
    assert commands.run("call", "words")[0] == ["Title"]
    commands.run("undeploy", "words")


def test_a_result_that_python_cannot_read_is_told_as_such(commands: Commands) -> None:
    """What comes from a sandbox is JSON, whoever wrote it, and no more is known of it."""
    commands.run("deploy", "lies", "app:lies")
    assert commands.run("call", "lies", "9")[0] == ["111111111"]
    _, told = commands.run("call", "lies", "5000", code=1)
    assert "a number of too many digits" in told[0]
    assert "string conversion" not in told[0]
    commands.run("undeploy", "lies")


def test_a_function_is_configured_where_it_is_deployed(commands: Commands) -> None:
    words = ("deploy", "configured", "app:configured", "--set", "rate=0.5", "--set", "url=http://x?a=b")
    listed, _ = commands.run(*words, "--dry-run")
    assert listed[-2:] == ["worker.config has rate=0.5", "worker.config has url=http://x?a=b"]
    commands.run(*words)
    shown, _ = commands.run("call", "configured")
    assert json.loads("\n".join(shown)) == {"rate": "0.5", "url": "http://x?a=b"}
    commands.run("deploy", "configured", "app:configured", "--set", "rate", code=2)
    commands.run("undeploy", "configured")


def test_what_a_generator_gives_is_printed_as_it_comes(commands: Commands) -> None:
    commands.run("deploy", "counts", "app:counts")
    shown, told = commands.run("call", "counts", "3", "--timeout", "2", code=6)
    assert shown == ["line 0", "line 1", "line 2"]
    assert "time limit" in told[0]
    commands.run("undeploy", "counts")


def test_a_file_that_a_function_returns_is_written_where_it_is_wanted(commands: Commands) -> None:
    home = commands.pool.directory
    commands.run("deploy", "makes", "app:makes")
    shown, _ = commands.run("call", "makes", "texts/first", "of the first", "-o", "here.txt")
    assert shown[0].startswith("here.txt: 12 B")
    assert (home / "here.txt").read_text() == "of the first"
    (home / "there").mkdir()
    commands.run("call", "makes", "texts/second", "of the second", "-o", "there")
    assert (home / "there" / "second").read_text() == "of the second"
    _, told = commands.run("call", "add", "1", "2", "-o", "none", code=1)
    assert "-o needs a function that returns a file (worker.result_file); it returned 3" in told[0]
    assert not (home / "none").exists()
    commands.run("undeploy", "makes")


def test_what_functions_may_ask_for_is_the_operator_s_to_set(commands: Commands) -> None:
    commands.run("deploy", "long", "app:add", "--limits", "wall=7200")
    commands.run("undeploy", "long")
    for limits in ("wall=7201", "memory=5GiB"):
        _, told = commands.run("deploy", "long", "app:add", "--limits", limits, code=2)
        assert "--limits-max" in told[0]


def test_the_log_and_the_figures_survive_the_pool_s_restart(commands: Commands) -> None:
    pool = commands.pool
    for word in ("first", "second", "third"):
        commands.run("call", "fails", word, code=1)
    printed = [line for line in pool.functions.logs("fails") if line.text.startswith("working on")]
    assert [line.text for line in printed[-2:]] == ["working on second", "working on third"]
    calls = pool.status("fails").calls
    await_kept_figures(pool, "fails", calls)
    pool.restart_pool()
    pool.await_workers("fails", 3)
    assert pool.status("fails").calls == calls
    assert pool.status("fails").p50_ms > 0
    kept = list(pool.client.logs("fails"))
    assert printed == [line for line in kept if line.text.startswith("working on")]
    told, _ = commands.run("logs", "--call", printed[-1].call_id[:8], "--json")
    assert {json.loads(line)["call_id"] for line in told} == {printed[-1].call_id}
    assert json.loads(told[0])["text"] == "working on third"
    told, _ = commands.run("logs", "fails", "--tail", "1", "--since", "1h", "--json")
    assert [json.loads(line) for line in told] == [dataclasses.asdict(kept[-1])]
    assert commands.run("logs", "fails", "--since", "2999-01-01")[0] == []
    assert [line.text for line in pool.client.logs(call_id=printed[-1].call_id, tail=1)] == [kept[-1].text]
    commands.run("logs", "fails", "--since", "yesterday", code=2)
    _, told = commands.run("logs", code=2)
    assert "name the function or the call" in told[0]


def await_kept_figures(pool: FunctionPool, function: str, calls: int) -> None:
    """Until the pool has written how many calls of a function there were."""
    path = str(pool.directory / "pool" / "calls")
    give_up = time.monotonic() + WAIT_S
    with lmdb.open(path, readonly=True, max_dbs=8) as kept:
        figures = kept.open_db(b"figures", create=False)
        while True:
            with kept.begin(figures) as txn:
                document = txn.get(function.encode())
            if document is not None and json.loads(document)[0] == calls:
                return
            assert time.monotonic() < give_up
            time.sleep(0.02)


def test_functions_fit_into_a_terminal(commands: Commands) -> None:
    commands.run("call", "add", "3", "4")
    shown, _ = commands.run("functions")
    assert [line.split()[0] for line in shown] == ["FUNCTION", "add", "fails"]
    assert max(map(len, shown)) <= COLUMNS


def test_a_function_that_nobody_called_has_taken_no_time(commands: Commands) -> None:
    (commands.pool.directory / "app.py").write_text(MODULE)
    commands.run("deploy", "idle", "app:add")
    try:
        shown, _ = commands.run("functions")
        (line,) = (line for line in shown if line.startswith("idle "))
        assert line.split().count("-") == 3
        assert " ms" not in line
    finally:
        commands.run("undeploy", "idle")


def test_the_pool_s_status_has_its_functions(commands: Commands) -> None:
    shown, _ = commands.run("status")
    at = next(number for number, line in enumerate(shown) if line.startswith("FUNCTION"))
    assert [line.split()[0] for line in shown[at + 1 :]] == ["add", "fails"]
    told = json.loads("\n".join(commands.run("status", "--json")[0]))
    assert [one["function"] for one in told["functions"]] == ["add", "fails"]


def test_rolling_back_says_so(commands: Commands) -> None:
    (commands.pool.directory / "app.py").write_text(MODULE + "\n# newer\n")
    commands.run("deploy", "add", "app:add")
    shown, _ = commands.run("functions", "rollback", "add")
    assert shown[0].startswith("add is rolled back: version ")

"""The examples do what examples/README.md says, run as a user runs them: its very commands, against real processes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.functions.processes import WAIT_S, FunctionPool

EXAMPLES = Path(__file__).parents[2] / "examples"
DEFAULT_POOL = "127.0.0.1:50051"
RED, BLUE = b"\xff\0\0", b"\0\0\xff"


class Shell:
    """A terminal in a copy of the examples, with a pool."""

    def __init__(self, directory: Path, pool: FunctionPool) -> None:
        self.pool = pool
        self.directory = directory / "examples"
        shutil.copytree(EXAMPLES, self.directory, ignore=shutil.ignore_patterns("__pycache__"))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKWORKER_")}
        self.environment = inherited | {
            "TASKWORKER_POOL": pool.address,
            "TASKWORKER_USER": "ann",
            "XDG_DATA_HOME": str(directory / "data"),
        }

    def run(self, command: str, *more: str) -> str:
        """What a command prints."""
        program, *rest = shlex.split(command)
        words = [*rest, *more]
        if program == "taskworker":
            done = forked.run(words, cwd=self.directory, env=self.environment, timeout_s=WAIT_S)
        else:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=self.directory,
                env=self.environment,
                capture_output=True,
                timeout=WAIT_S,
                check=False,
            )
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
        return done.stdout.decode()

    def words(self, command: str) -> list[str]:
        program, *rest = shlex.split(command)
        return [sys.executable, *(["-m", "taskworker"] if program == "taskworker" else []), *rest]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp("examples")
    with FunctionPool(directory) as pool:
        pool.await_whole()
        yield Shell(directory, pool)


def commands(title: str) -> list[str]:
    """What README.md says to type for one of the examples."""
    _, _, rest = (EXAMPLES / "README.md").read_text().partition(f"**{title}**")
    lines = rest.partition("\n**")[0].splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]


def test_every_command_of_the_readme_is_run_here() -> None:
    told = (EXAMPLES / "README.md").read_text().splitlines()
    titles = (
        "Thumbnails",
        "Thumbnails without Pillow",
        "Statistics of a text",
        "Sales",
        "A periodic report",
        "A program with functions of its own",
    )
    shown = [line.strip() for line in told if line.startswith("    ")]
    assert [command for title in titles for command in commands(title)] == shown


def test_thumbnails(shell: Shell) -> None:
    thumbnail = _thumbnail(shell, "Thumbnails", "photo")
    assert struct.unpack_from(">II", thumbnail, 16) == (160, 40)  # in the head of a PNG


def test_thumbnails_without_pillow(shell: Shell) -> None:
    assert _pixels(_thumbnail(shell, "Thumbnails without Pillow", "plain"), 160) == [RED * 80 + BLUE * 80] * 40


def _thumbnail(shell: Shell, title: str, photo: str) -> bytes:
    (shell.directory / f"{photo}.png").write_bytes(_png([RED * 200 + BLUE * 200] * 100))
    deploy, push, call, get = commands(title)
    assert "with 1 package" in shell.run(deploy)
    shell.run(push)
    told = json.loads(shell.run(call))
    assert (told["filename"], told["width"], told["height"]) == (f"{photo}.thumbnail.png", 160, 40)
    shell.run(get)
    return (shell.directory / f"{photo}.thumbnail.png").read_bytes()


def test_statistics_of_a_text(shell: Shell) -> None:
    line = "The cat and the dog, the 词 and THE end.\n"
    (shell.directory / "book.txt").write_text(line * 20_000)
    deploy, push, call = commands("Statistics of a text")
    for command in (deploy, push):
        shell.run(command)
    told = json.loads(shell.run(call, "--kw", "commonest=2"))
    assert told == {
        "lines": 20_000,
        "characters": len(line) * 20_000,
        "words": 200_000,
        "commonest": [["the", 80_000], ["and", 40_000]],
    }
    assert "book.txt: 20000 lines" in shell.run("taskworker logs text-statistics")


def test_sales(shell: Shell) -> None:
    for name, amount in (("north", 1.5), ("south", 10)):
        lines = [f"{city},{amount}" for _ in range(2000) for city in ("Oslo", "Zürich", "<Rome>")]
        (shell.directory / f"{name}.csv").write_text("\n".join(["city,amount", *lines]) + "\n")
    *before, rows, totals, report = commands("Sales")
    for command in before:
        shell.run(command)
    streamed = shell.run(rows)
    assert streamed.count("Oslo") == streamed.count("1.5") == 2000
    assert "Rome" not in streamed
    assert json.loads(shell.run(totals)) == {"Oslo": 23_000, "Zürich": 23_000, "<Rome>": 23_000}
    shell.run(report)
    assert "<td>&lt;Rome&gt;<td>23000.00 EUR" in (shell.directory / "report.html").read_text()


def test_a_periodic_report(shell: Shell) -> None:
    shell.run("taskworker push README.md --name reported/one")
    (command,) = commands("A periodic report")
    told = shell.run(command.replace("--every 60", "--every 1.1 --times 2")).splitlines()
    assert len(told) == 2
    assert all(line.startswith("report.md is version ") for line in told)
    assert len(set(told)) == 2  # it says to the second when it was made
    assert "reported/one: " in shell.run("taskworker get report.md -o -")
    assert len(json.loads(shell.run("taskworker log report.md --json"))) == 2


def test_a_program_of_its_own(shell: Shell) -> None:
    program = shell.directory / "calculator.py"
    program.write_text(program.read_text().replace(DEFAULT_POOL, shell.pool.address))
    serve, call = commands("A program with functions of its own")
    with subprocess.Popen(
        shell.words(serve), cwd=shell.directory, env=shell.environment, stdout=subprocess.PIPE, text=True
    ) as worker:
        try:
            assert worker.stdout is not None
            assert "worker calculator at 127.0.0.1:" in worker.stdout.readline()
            shell.pool.await_workers("calculate", 1)
            assert shell.run(call) == "7\n"
            assert shell.run("taskworker call slow_sum", "[1, 2, 0.5]") == "3.5\n"
        finally:
            worker.terminate()
            worker.wait(WAIT_S)


def _png(rows: list[bytes]) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", len(rows[0]) // 3, len(rows), 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _pixels(png: bytes, width: int) -> list[bytes]:
    """The rows of an image of 8-bit RGB whose rows are not filtered."""
    place, compressed = 8, b""
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        if png[place + 4 : place + 8] == b"IDAT":
            compressed += png[place + 8 : place + 8 + length]
        place += length + 12
    raw, stride = zlib.decompress(compressed), 3 * width + 1
    rows = [raw[start : start + stride] for start in range(0, len(raw), stride)]
    assert all(row[0] == 0 for row in rows)
    return [row[1:] for row in rows]

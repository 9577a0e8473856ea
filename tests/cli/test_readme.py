"""What README.md shows works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TIMEOUT_S, Cli, serving

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIBRARY, WORKER, CLIENT = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_set_up_is_two_lines() -> None:
    section = README.split("## Set-up\n")[1].split("\n## ")[0]
    first, second = re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)
    assert first == ("sh", "./dev demo\n")
    assert second == ("sh", "./dev test\n")
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").endswith(second[1])


@pytest.fixture
def desk(embedded: Cli) -> Cli:
    """A directory with the files that the examples name."""
    for name in ("report.pdf", "draft7.pdf", "big.iso"):
        embedded.write(name, os.urandom(1_500_000))
    return embedded


def run_python(desk: Cli, code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=desk.directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_library(desk: Cli) -> None:
    assert run_python(desk, LIBRARY).splitlines()[-1] == "True 2"


def test_worker(desk: Cli) -> None:
    code = WORKER.replace("port=50052", "port=0")
    assert re.fullmatch(r"[0-9a-f]{32}\n", run_python(desk, code))


def test_client(desk: Cli) -> None:
    with serving(desk, desk.directory / "data") as address:
        run_python(desk, CLIENT.replace("127.0.0.1:50051", address))
    assert desk.read("copy.iso") == desk.read("big.iso")


def test_command_line(desk: Cli) -> None:
    desk.run("push", "report.pdf")
    desk.run("get", "report.pdf", "-o", "copy.pdf")
    desk.run("get", "report.pdf", "--range", "0-99", "-o", "-")
    desk.run("revise", "report.pdf", "draft7.pdf")
    desk.run("log", "report.pdf")
    desk.run("sync", "draft7.pdf")
    assert desk.read("copy.pdf") == desk.read("report.pdf")


def test_demo(desk: Cli) -> None:
    del desk.variables["TASKWORKER_STORE"]
    shown = desk.text("demo")
    assert "byte for byte the same" in shown
    assert shown.count("all files survive the loss of any 2 workers") >= 2
    assert os.listdir(desk.directory.parent) == ["here"]

"""What README.md shows works as it stands there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TIMEOUT_S, Cli, serving
from tests.functions.processes import USER, FunctionPool

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FUNCTIONS, LIBRARY, WORKER, CLIENT = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


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


def test_first_steps(tmp_path: Path, desk: Cli) -> None:
    section = README.split("## First steps\n")[1].split("\n## ")[0]
    assert len(section.splitlines()) < 50  # a screen
    (session,) = re.findall(r"```pycon\n(.*?)```", section, re.DOTALL)
    code = "".join(line[4:] for line in session.splitlines(keepends=True) if line.startswith((">>> ", "... ")))
    assert run_python(desk, code) == session.splitlines()[-1] + "\n"
    consoles = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    script = re.sub(r"^\$ ", "", "".join(consoles), flags=re.MULTILINE)
    commands = [line for line in script.splitlines() if line not in ("hello", "7") and not line.startswith("all files")]
    with FunctionPool(tmp_path, workers=2) as pool:
        (tmp_path / "plain.py").write_text("def f() -> int: return 1\n")
        pool.deploy("first", "plain:f", tmp_path)  # once its workers are there
        environment = os.environ | {"TASKWORKER_POOL": pool.address, "TASKWORKER_USER": USER}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        ended = subprocess.run(
            ["sh", "-e"],
            input="\n".join(commands),
            cwd=desk.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    shown = ended.stdout.splitlines()
    assert "hello" in shown
    assert shown[-1] == "7"


def test_library(desk: Cli) -> None:
    assert run_python(desk, LIBRARY).splitlines()[-1] == "True 2"


def test_worker(desk: Cli) -> None:
    code = WORKER.replace("port=50052", "port=0")
    assert re.fullmatch(r"[0-9a-f]{32}\n", run_python(desk, code))


def test_client(desk: Cli) -> None:
    with serving(desk, desk.directory / "data") as address:
        run_python(desk, CLIENT.replace("127.0.0.1:50051", address))
    assert desk.read("copy.iso") == desk.read("big.iso")


def test_functions(tmp_path: Path) -> None:
    with FunctionPool(tmp_path, workers=2) as pool:
        program = FUNCTIONS.replace("127.0.0.1:50051", pool.address).replace(
            "node_pool", f"volume='{tmp_path}/v', node_pool"
        )
        (tmp_path / "app.py").write_text(program)
        environment = os.environ | {"TASKWORKER_POOL": pool.address, "TASKWORKER_USER": USER}

        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", "taskworker", *arguments]
            ended = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
            assert ended.returncode == 0, ended.stderr
            return ended.stdout

        (tmp_path / "plain.py").write_text("def calculate(a: int, b: int) -> int: return a + b\n")
        pool.deploy("first", "plain:calculate", tmp_path)  # once its workers are there
        run("deploy", "calculate", "plain:calculate")
        assert run("call", "calculate", "3", "4") == "7\n"
        assert "calculate" in run("functions")
        run("logs", "calculate")
        run("undeploy", "calculate")
        with Served(tmp_path, environment):
            pool.await_workers("calculate", 1)
            assert run("call", "calculate", "3", "4") == "7\n"


class Served:
    """`taskworker worker app:worker`, until the end of the block."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "taskworker", "worker", "app:worker", "--listen", "127.0.0.1:0"]
        self._process = subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(TIMEOUT_S) == 0


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

"""Secrets through pool, workers and sandboxes: given where granted, and found nowhere else."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from typer.testing import CliRunner

from storage.errors import InvalidArgument
from taskworker import TaskWorker
from taskworker.cli.app import app_for
from taskworker.client.secrets import SecretClient
from taskworker.errors import FunctionFailed
from tests.cluster.processes import Process
from tests.functions.processes import USER, FunctionPool

DEPLOYED = """
from taskworker.inside import WorkerError, worker


def refused(name):
    try:
        worker.get_secret(name)
    except WorkerError as error:
        return [error.kind, str(error)]
"""

# A program whose worker alone runs these: the others never have what they are given.
PROGRAM = """
import base64
import logging
import urllib.parse

from taskworker import TaskWorker

worker = TaskWorker("worker_001", node_pool_address="{address}", volume="{volume}", capacity=10 << 30)


@worker.function("uses")
def uses() -> str:
    return worker.get_secret("external_api_key")


@worker.function("length")
def length(name):
    return len(worker.get_secret(name))


@worker.function("leaks")
def leaks(name):
    value = worker.get_secret(name)
    print("plain", value, "base64", base64.b64encode(value.encode()).decode(), flush=True)
    print("in a header", base64.b64encode(b"user:" + value.encode()).decode())
    logging.warning("url %s hex %s", urllib.parse.quote(value, safe=""), value.encode().hex())
    worker.call("prints", value)
    raise ValueError(f"{{name}} is {{value}}, {{value!r}}")


@worker.function("fills")
def fills(url, name):
    secret = "{{{{secret:" + name + "}}}}"
    return worker.call_external_api(url, headers={{"X-Key": secret}}, params={{"key": secret}}).status_code


@worker.function("prints")
def prints(value):
    print("told", value)
"""


@contextlib.contextmanager
def program(pool: FunctionPool) -> Iterator[int]:
    """The program's worker as a process; its pid."""
    home = pool.directory / "program"
    home.mkdir()
    (home / "holding.py").write_text(PROGRAM.format(address=pool.address, volume=home / "volume"))
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskworker", "worker", "holding:worker", "--listen", "127.0.0.1:0"],
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionPool]:
    directory = tmp_path_factory.mktemp("secrets")
    (directory / "deployed.py").write_text(DEPLOYED)
    with FunctionPool(directory, workers=2) as pool:
        pool.deploy("refused", "deployed:refused", directory)
        yield pool


@pytest.fixture(scope="module")
def holder(pool: FunctionPool) -> Iterator[int]:
    with program(pool) as pid:
        pool.await_workers("uses", 1)
        yield pid


@pytest.fixture(scope="module")
def operator(pool: FunctionPool) -> Iterator[SecretClient]:
    with SecretClient(pool.address) as client:
        yield client


def taskworker(pool: FunctionPool, *arguments: str, stdin: str = "", code: int = 0) -> str:
    """What a command says, on both streams."""
    variables = {"TASKWORKER_POOL": pool.address, "TASKWORKER_USER": USER}
    done = CliRunner().invoke(app_for(arguments), arguments, input=stdin, env=variables)
    assert done.exit_code == code, done.output
    return done.output


# -- use -------------------------------------------------------------------------------------------


def test_the_usage_text_runs_as_written(pool: FunctionPool, holder: int, operator: SecretClient) -> None:
    with pytest.raises(FunctionFailed, match="taskworker secret grant external_api_key uses"):
        pool.client.call("uses", user_id=USER)
    operator.set("external_api_key", "k-123")
    operator.grant("external_api_key", "uses")
    assert pool.client.call("uses", user_id=USER) == "k-123"
    operator.rotate("external_api_key", "k-456")
    assert pool.client.call("uses", user_id=USER) == "k-456"
    operator.rotate_master_key()
    assert pool.client.call("uses", user_id=USER) == "k-456"
    operator.revoke("external_api_key", "uses")
    with pytest.raises(FunctionFailed, match="no secret external_api_key is granted to function uses"):
        pool.client.call("uses", user_id=USER)


def test_outside_of_a_function_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="inside a function"):
        TaskWorker("alone", store=tmp_path).get_secret("external_api_key")


def test_a_function_cannot_tell_whether_there_is_a_secret(
    pool: FunctionPool, holder: int, operator: SecretClient
) -> None:
    operator.set("hidden", "value")
    operator.grant("hidden", "length")
    there, absent = (pool.client.call("refused", [name], user_id=USER) for name in ("hidden", "absent"))
    assert there[0] == "PermissionDenied"
    assert "`taskworker secret grant hidden refused`" in there[1]
    assert there[1].replace("hidden", "absent") == absent[1]
    assert pool.client.call("length", ["hidden"], user_id=USER) == 5
    used = {one.name: one.last_used_ms for one in operator.secrets()}
    assert used["hidden"] is not None


def test_commands_keep_secrets_and_never_show_them(pool: FunctionPool, holder: int) -> None:
    value = secrets.token_urlsafe(18)
    said = taskworker(pool, "secret", "set", "cli_key", stdin=f"{value}\n")
    said += taskworker(pool, "secret", "set", "cli_key", stdin=f"{value}\n", code=4)
    taskworker(pool, "secret", "set", "cli_key", value, code=2)  # no argument takes it
    said += taskworker(pool, "secret", "grant", "cli_key", "length", "--host", "api.example.com")
    with pytest.raises(FunctionFailed, match=r"only in requests to api\.example\.com"):
        pool.client.call("length", ["cli_key"], user_id=USER)
    said += taskworker(pool, "secret", "grant", "cli_key", "length")
    assert pool.client.call("length", ["cli_key"], user_id=USER) == len(value)
    listed = taskworker(pool, "secret", "ls")
    assert "cli_key" in listed
    documents = json.loads(taskworker(pool, "secret", "ls", "--json"))
    assert [(one["version"], one["grants"]) for one in documents if one["name"] == "cli_key"] == [
        (1, [{"function": "length", "hosts": []}])
    ]
    said += taskworker(pool, "secret", "rotate", "cli_key", stdin="short\r\n")
    said += taskworker(pool, "secret", "rotate-master")
    assert pool.client.call("length", ["cli_key"], user_id=USER) == len("short")
    said += taskworker(pool, "secret", "revoke", "cli_key", "length")
    said += taskworker(pool, "secret", "rm", "cli_key")
    said += taskworker(pool, "secret", "rm", "cli_key", code=3)
    taskworker(pool, "secret", "rm", code=2)
    taskworker(pool, "secret", "set", "large", stdin="x" * 70_000, code=2)
    assert value not in said + listed


# Run by a program of its own: a preexec_fn is Python in a fork of this process, where gRPC has threads.
ON_OWN_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # makes it the controlling terminal
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_person_is_asked_twice_and_sees_nothing_of_it(pool: FunctionPool, operator: SecretClient) -> None:
    master, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_OWN_TERMINAL, "-m", "taskworker", "secret", "set", "typed", "--pool", pool.address],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    for prompt in (b"Value of typed: ", b"Repeat the value: "):
        while prompt not in shown:
            shown += os.read(master, 1024)
        os.write(master, b"wh4t-is-typed\n")
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(master, 1024):
            shown += piece
    os.close(master)
    assert process.wait() == 0, shown
    assert b"wh4t" not in shown
    operator.remove("typed")


# -- planted values ----------------------------------------------------------------------------------


def forms(value: str) -> list[bytes]:
    raw = value.encode()
    encoded = [base64.b64encode(raw), base64.urlsafe_b64encode(raw), base64.b64encode(b"user:" + raw)[7:-4]]
    return [raw, raw.hex().encode(), raw.hex().upper().encode(), *(one.rstrip(b"=") for one in encoded)]


def found(value: str, places: Iterable[tuple[str, bytes]]) -> list[str]:
    return [name for name, content in places if any(form in content for form in forms(value))]


def files(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()


def memory(root: int) -> Iterator[tuple[str, bytes]]:
    """All that a process and its descendants have in memory."""
    yield f"process {root}", _memory_of(root)
    for process in psutil.Process(root).children(recursive=True):
        # They come and go; and not everybody may look into a sandbox of another user namespace.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            yield f"process {process.pid}", _memory_of(process.pid)


def _memory_of(pid: int) -> bytes:
    pieces = []
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as content:
        for line in maps:
            place, rights, *_ = line.split()
            if rights.startswith("rw"):
                start, end = (int(one, 16) for one in place.split("-"))
                with contextlib.suppress(OSError):  # gone meanwhile, or a device's
                    pieces.append(os.pread(content.fileno(), end - start, start))
    return b"".join(pieces)


def pid_of(process: Process) -> int:
    pid = process.announced["pid"]
    assert isinstance(pid, int)
    return pid


def test_planted_values_are_found_nowhere_but_where_they_are_granted(pool: FunctionPool, holder: int) -> None:
    planted = {f"planted{at}": secrets.token_urlsafe(24) for at in range(2)}
    said = []
    for name, value in planted.items():
        said.append(taskworker(pool, "secret", "set", name, stdin=value))
        said.append(taskworker(pool, "secret", "grant", name, "leaks"))
        told = taskworker(pool, "call", "leaks", name, code=1)
        assert f"{name} is ***, '***'" in told
        said += [told, taskworker(pool, "call", "refused", name), taskworker(pool, "call", "length", name, code=1)]
    for _ in range(4):
        pool.client.call("refused", ["planted0"], user_id=USER)  # on each worker by now
    logged = taskworker(pool, "logs", "leaks") + taskworker(pool, "logs", "prints")
    for line in ("plain *** base64 ***", "url *** hex ***", "told ***", "ValueError: planted1 is ***"):
        assert line in logged
    said += [logged, taskworker(pool, "secret", "ls", "--json"), taskworker(pool, "secret", "rotate-master")]
    said += [taskworker(pool, "status", "--json"), taskworker(pool, "functions", "--json")]
    said.append(taskworker(pool, "secret", "set", "planted0", stdin=planted["planted0"], code=4))

    others = [one for process in pool.workers.values() for one in memory(pid_of(process))]
    if os.geteuid() == 0:
        assert len(others) > 4  # theirs, and those of the functions that they run
    on_disk = list(files(pool.directory))
    assert all(any(part in name for name, _ in on_disk) for part in ("catalog", "pool.log", "w0", "w1", "program"))
    for value in planted.values():
        assert found(value, [("what looks for it", b"x" + value.encode())])  # finds it
        assert found(value, [*((text[:80], text.encode()) for text in said), *others, *on_disk]) == []
        assert found(value, memory(holder))  # here it was granted


class Outside(BaseHTTPRequestHandler):
    """A host that wants a key; keeps what it was sent."""

    sent: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.sent.append((str(self.headers["X-Key"]), self.path))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


@pytest.fixture
def outside() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Outside) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_value_that_the_pool_fills_in_is_known_to_no_worker(pool: FunctionPool, holder: int, outside: int) -> None:
    value = secrets.token_urlsafe(24)
    url = f"http://127.0.0.1:{outside}/"
    said = taskworker(pool, "secret", "set", "filled", stdin=value)
    said += taskworker(pool, "egress", "allow", "fills", f"127.0.0.1:{outside}", "--private")
    said += taskworker(pool, "call", "fills", url, "filled", code=1)  # not granted
    assert not Outside.sent
    said += taskworker(pool, "secret", "grant", "filled", "fills", "--host", "127.0.0.1")
    said += taskworker(pool, "call", "fills", url, "filled")
    said += taskworker(pool, "call", "fills", url.replace("127.0.0.1", "localhost"), "filled", code=1)
    said += taskworker(pool, "egress", "log") + taskworker(pool, "logs", "fills")
    assert Outside.sent == [(value, f"/?key={value}")]
    pids = [holder, *(pid_of(process) for process in pool.workers.values())]
    known = [one for pid in pids for one in memory(pid)]
    assert found(value, [("said", said.encode()), *known, *files(pool.directory)]) == []


def test_neither_pool_nor_worker_leaves_a_core_dump(pool: FunctionPool, holder: int) -> None:
    pids = [pid_of(pool.pool_process), holder, *(pid_of(process) for process in pool.workers.values())]
    for pid in (*pids, *(one.pid for one in psutil.Process(holder).children(recursive=True))):
        assert "Max core file size        1                    1 " in Path(f"/proc/{pid}/limits").read_text()

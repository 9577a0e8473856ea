"""A pool and workers on machines of their own, which join with tokens. Skipped where there can be no namespaces."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts.following import NAMES, USER, WORKERS, Following
from tests.cluster.hosts.network import Hosts, require_namespaces
from tests.cluster.hosts.planted import CONTENT, found_in, planted
from tests.cluster.processes import Process

MIB = 1 << 20


class Machines:
    """A pool on the first machine, and workers on the others."""

    def __init__(self, hosts: Hosts, directory: Path) -> None:
        self.hosts = hosts
        self.directory = directory
        self.workers: dict[int, Process] = {}
        arguments = ["pool", "--dir", str(directory / "pool"), "--listen", "127.0.0.1:0", "--grace", "3"]
        arguments += ["--join", f"{hosts.address(0)}:7001", "--members-port", "7002", "--tranquility", "0"]
        self.pool = Process(arguments, directory / "pool.log", inside=hosts.inside(0))

    def command(self, *arguments: str) -> Any:
        """Run a command at the pool's machine, as its operator and user."""
        told = self.hosts.run(0, sys.executable, "-m", "taskworker", "--pool", self.pool.address, "--json", *arguments)
        return json.loads(told)

    def token(self, worker: str, *more: str) -> str:
        return str(self.command("worker", "token", "--id", worker, *more)["token"])

    def start(self, number: int, token: str = "", *more: str, worker: str = "") -> Process:
        """Start a worker on its machine, for the first time with a token."""
        name = worker or f"w{number}"
        arguments = ["worker", "--id", name, "--dir", str(self.directory / f"w{number}"), "--listen", "0.0.0.0:0"]
        arguments += ["--pool", f"{self.hosts.address(0)}:7001", "--no-functions", "--capacity", "10", *more]
        arguments += ["--token", token] if token else []
        log = self.directory / f"w{number}.log"
        self.workers[number] = Process(arguments, log, inside=self.hosts.inside(number))
        return self.workers[number]

    def await_states(self, wanted: dict[str, str], survivable: int = 0) -> dict[str, Any]:
        give_up_at = time.monotonic() + 60
        while True:
            status: dict[str, Any] = self.command("status")
            states = {worker["worker_id"]: worker["state"] for worker in status["workers"]}
            is_survivable = status["workers_survivable"] >= survivable
            if all(states.get(name) == state for name, state in wanted.items()) and is_survivable:
                return status
            assert time.monotonic() < give_up_at, status
            time.sleep(0.1)

    def stop(self) -> None:
        for process in (*self.workers.values(), self.pool):
            process.kill()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    require_namespaces()
    with Hosts(1 + WORKERS, tmp_path / "capture") as hosts:
        machines = Machines(hosts, tmp_path)
        try:
            yield machines
        finally:
            machines.stop()


def test_a_pool_over_several_machines_by_the_how_to(tmp_path: Path) -> None:
    """It works as the page says, and nothing of what users store passes or stays on workers' disks in plain text."""
    require_namespaces()
    with Hosts(len(NAMES), tmp_path / "capture", tmp_path / "disks", NAMES) as hosts:
        content = (CONTENT * (2 * MIB // len(CONTENT))).encode() + random.Random(1).randbytes(4 * MIB)
        (hosts.disk(USER) / "accounts-2026.ods").write_bytes(content)
        with Following(hosts, tmp_path / "logs", {"taskworker pool": "--grace 3 --tranquility 0"}) as following:
            following.follow()
            words = planted(following)
        assert (tmp_path / "capture").stat().st_size > 4 * len(content)  # it was pushed and got over this network
        assert found_in(tmp_path / "capture", words) == []
        for number in range(1, 1 + WORKERS):
            assert len(list(hosts.disk(number).rglob("*"))) > 5
            assert found_in(hosts.disk(number), words) == []
        # Whoever has both the pool's and the user's machine has everything: the search finds what there is.
        assert {text.partition(" in ")[0] for text in found_in(hosts.disk(USER), words)} >= {"the file's content"}


def test_only_those_that_were_admitted_join_and_only_as_themselves(machines: Machines) -> None:
    token = machines.token("w1", "--zone", "rack1", "--owner", "ann")
    with pytest.raises(AssertionError, match="the token is for worker 'w1', not for 'w2'"):
        machines.start(2, token, worker="w2")
    with pytest.raises(AssertionError, match="cannot choose 'rack9'"):
        machines.start(1, token, "--zone", "rack9")
    machines.start(1)  # it has a certificate, and was told why it was not let in
    status = machines.await_states({"w1": "alive"})
    assert [(worker["zone"], worker["owner"]) for worker in status["workers"]] == [("rack1", "ann")]
    with pytest.raises(AssertionError, match="it was used already"):
        machines.start(2, token, worker="w1")
    with pytest.raises(AssertionError, match="joins with a token instead"):
        machines.start(2)
    secret = token.rpartition(".")[2]
    with pytest.raises(AssertionError, match="is not the pool that the token is from"):
        machines.start(3, f"tw1.{'0' * 64}.w3.{secret}")
    with pytest.raises(AssertionError, match="the token to join with is not valid"):
        machines.start(3, token.replace(".w1.", ".w3."))
    assert machines.command("worker", "deny", "--id", "w1")["denied"]
    machines.await_states({"w1": "suspect"})
    machines.workers.pop(1).stop()
    with pytest.raises(AssertionError, match="not any more; it needs a new token"):
        machines.start(1)
    machines.start(1, machines.token("w1", "--zone", "rack1"))
    machines.await_states({"w1": "alive"})


def test_a_wrong_clock_is_refused_by_a_text_that_names_it(machines: Machines) -> None:
    token = machines.token("w1")
    program = "import sys, time; real = time.time_ns; time.time_ns = lambda: real() + 2 * 86_400 * 10**9; "
    program += "from taskworker.cli.app import run; sys.exit(run())"
    arguments = ["worker", "--id", "w1", "--dir", str(machines.directory / "w1"), "--no-functions", "--token", token]
    arguments += ["--pool", f"{machines.hosts.address(0)}:7001", "--listen", "0.0.0.0:0"]
    with pytest.raises(AssertionError, match=r"the clock of worker w1 is 2 days ahead of the pool's"):
        machines.hosts.run(1, sys.executable, "-c", program, *arguments)
    machines.start(1, token)  # the token was not used up


def test_strangers_get_nothing_from_a_worker(machines: Machines) -> None:
    """Its ports speak TLS with members only."""
    worker = machines.start(1, machines.token("w1"))
    machines.await_states({"w1": "alive"})
    for address in (worker.address, worker.shard_address):
        probe = f"""
import socket, ssl
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with socket.create_connection(("{machines.hosts.address(1)}", {address.rpartition(":")[2]}), 5) as plain:
    plain.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(100))
    plain.settimeout(5)
    try:
        answer = plain.recv(1000)
    except ConnectionError:
        answer = b""
    assert len(answer) < 10, answer  # at most an alert
with socket.create_connection(("{machines.hosts.address(1)}", {address.rpartition(":")[2]}), 5) as plain:
    try:
        with context.wrap_socket(plain) as shaken:
            shaken.sendall(bytes(100))
            answer = shaken.recv(1000)
    except OSError as error:
        answer = b""
    assert not answer, answer
"""
        machines.hosts.run(2, sys.executable, "-c", probe)

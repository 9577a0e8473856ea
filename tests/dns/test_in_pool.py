"""Names in a pool of real processes: by dnspython, the raw contract, the client, the command line, and functions."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator

import dns.message
import dns.query
import grpc
import pytest
from dns.message import Message

from storage.errors import InvalidArgument, PermissionDenied
from taskworker.cli.exits import ExitCode
from taskworker.errors import FunctionFailed, NameNotFound, NameServersUnavailable
from taskworker.protos import taskworker_pb2
from taskworker.protos.taskworker_pb2_grpc import DNSServiceStub
from taskworker.rpc.dialling import dial
from tests import forked
from tests.dns.upstream import TestNameServer
from tests.functions.processes import USER, WAIT_S, FunctionPool

MODULE = """
from taskworker.inside import worker


def look(name, kind="A"):
    return worker.resolve(name, kind)
"""


@pytest.fixture(scope="module")
def outside() -> Iterator[TestNameServer]:
    with TestNameServer() as server:
        server.set("www.example 300 A 198.41.0.4", "www.example 300 A 198.41.0.5", "evil.example 300 A 127.0.0.1")
        server.set("ads.example 300 A 198.41.0.6", "db.corp.example 300 A 10.0.0.7", 'www.example 300 TXT "a,b"')
        yield server


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, outside: TestNameServer) -> Iterator[FunctionPool]:
    directory = tmp_path_factory.mktemp("names")
    (directory / "app.py").write_text(MODULE)
    (directory / "blocked").write_text("ads.example\n")
    upstream = f"{outside.server.address}:{outside.server.port}"
    options = ["--dns-port", "0", "--dns-upstream", upstream, "--dns-block", str(directory / "blocked")]
    options += ["--dns-allow-private", "corp.example", "--allow-fragile"]
    with FunctionPool(directory, workers=1, pool_options=options) as pool:
        pool.deploy("look", "app:look", directory)
        pool.await_workers("look", 1)
        yield pool


def ask(pool: FunctionPool, name: str, kind: str = "A") -> Message:
    host, _, port = str(pool.pool_process.announced["dns"]).rpartition(":")
    return dns.query.udp(dns.message.make_query(name, kind), host, timeout=WAIT_S, port=int(port))


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_the_pool_names_its_workers_and_functions(pool: FunctionPool) -> None:
    port = pool.workers["w0"].address.rpartition(":")[2]
    assert [str(one) for one in ask(pool, "W0.worker.hive", "SRV").answer[0]] == [f"0 0 {port} w0.worker.hive."]
    until(lambda: len(pool.client.resolve("look.function.hive", "SRV")) == 1)
    (node,) = pool.client.resolve("hive", "NS")
    assert pool.client.resolve("w0.worker.hive", "TXT")[0].startswith("worker=w0 state=alive")
    assert pool.client.resolve(node, "SRV") == [f"0 0 {pool.address.rpartition(':')[2]} {node}"]


def test_names_follow_workers_that_come_and_die(pool: FunctionPool) -> None:
    process = pool.start_worker("passing_1")
    until(lambda: bool(ask(pool, "passing_1.worker.hive").answer))  # once it has joined
    assert [str(one) for one in ask(pool, "passing_1.worker.hive").answer[0]] == ["127.0.0.1"]
    process.kill()
    until(lambda: not ask(pool, "passing_1.worker.hive").answer)  # once its lease has run out
    assert "state=suspect" in pool.client.resolve("passing_1.worker.hive", "TXT")[0]


def test_the_client_gets_typed_errors(pool: FunctionPool) -> None:
    resolve = pool.client.resolve
    assert resolve("www.example") == ["198.41.0.4", "198.41.0.5"]
    assert resolve("www.example", "TXT") == ["a,b"]
    assert resolve("db.corp.example") == ["10.0.0.7"]
    with pytest.raises(NameNotFound, match=r"there is no name absent\.example"):
        resolve("absent.example")
    with pytest.raises(PermissionDenied, match=r"127\.0\.0\.1, which is not public"):
        resolve("evil.example")
    with pytest.raises(PermissionDenied, match="blocked"):
        resolve("ads.example")
    with pytest.raises(InvalidArgument, match="choose one of A, AAAA"):
        resolve("www.example", "ANY")
    with pytest.raises(InvalidArgument):
        resolve("\ud800.example")


def test_the_raw_contract(pool: FunctionPool) -> None:
    with dial(pool.address) as channel:
        resolve = DNSServiceStub(channel).ResolveDomain
        response = resolve(taskworker_pb2.DNSRequest(domain="www.example"))
        assert (response.resolved_ip, response.status, response.message) == ("198.41.0.4,198.41.0.5", True, "")
        assert list(response.answers) == ["198.41.0.4", "198.41.0.5"]
        assert 0 < response.ttl <= 300
        for name, kind, code in (
            ("absent.example", "A", grpc.StatusCode.NOT_FOUND),
            ("www.example", "SPF", grpc.StatusCode.INVALID_ARGUMENT),
            ("evil.example", "A", grpc.StatusCode.PERMISSION_DENIED),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                resolve(taskworker_pb2.DNSRequest(domain=name, request_type=kind))
            assert refused.value.code() is code


def test_no_answer_from_name_servers_is_unavailable(pool: FunctionPool, outside: TestNameServer) -> None:
    outside.failing = True
    try:
        with pytest.raises(NameServersUnavailable, match="the name servers do not answer"):
            pool.client.resolve("fails.example", timeout_s=WAIT_S)
    finally:
        outside.failing = False


def run(pool: FunctionPool, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TASKWORKER_POOL": pool.address}
    done = forked.run(arguments, cwd=pool.directory, env=environment, timeout_s=WAIT_S)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_command_line(pool: FunctionPool) -> None:
    told = json.loads(run(pool, "resolve", "www.example", "--type", "a", "--json").stdout)
    assert told == {"name": "www.example", "type": "A", "records": ["198.41.0.4", "198.41.0.5"]}
    absent = run(pool, "resolve", "absent.worker.hive")
    assert (absent.returncode, absent.stdout) == (ExitCode.NOT_FOUND, "")
    assert "there is no name absent.worker.hive" in absent.stderr


def test_functions_resolve_the_pools_own_names_and_no_others_unless_allowed(pool: FunctionPool) -> None:
    call = pool.client.call
    assert call("look", ["w0.worker.hive"], user_id=USER) == ["127.0.0.1"]
    assert len(call("look", ["look.function.hive", "SRV"], user_id=USER)) >= 1
    for name in ("www.example", "absent.example"):  # whether or not there is such a name
        with pytest.raises(FunctionFailed, match=rf"may not resolve {name}; `taskworker egress allow look"):
            call("look", [name], user_id=USER)
    with pytest.raises(FunctionFailed, match=r"there is no name absent\.worker\.hive"):
        call("look", ["absent.worker.hive"], user_id=USER)

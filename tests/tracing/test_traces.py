"""What a pool, its workers and its clients do is one trace, which a real receiver of OTLP gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskworker.tracing.otlp import is_wanted
from tests.functions.processes import FunctionPool

pytest.importorskip("opentelemetry.proto", reason="NOTHING IS TRACED IN THIS RUN: the extra otel is not installed")
from tests.tracing.receiver import Receiver, Span

CLIENT, SERVER = 3, 2
SECRET_NAME = "a-name-that-nobody-else-should-see"
FUNCTION = """
from taskworker.inside import worker


def traced(name: str) -> str:
    worker.storage.get(name)
    return worker.caller.traceparent
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture(scope="module")
def traced_pool(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionPool]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in receiver.environment.items():
            patch.setenv(name, value)
        with FunctionPool(tmp_path_factory.mktemp("traced"), workers=3) as pool:
            pool.await_whole()
            yield pool


def run(pool: FunctionPool, receiver: Receiver, *arguments: str) -> str:
    """Run a command whose trace is sent, too."""
    return subprocess.run(
        [sys.executable, "-m", "taskworker", *arguments, "--pool", pool.address, "--user", "ann"],
        env=os.environ | receiver.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def of(receiver: Receiver, service: str, name: str, **more: object) -> Span:
    return receiver.await_span(
        lambda span: (
            (span.service, span.name) == (service, name)
            and all(getattr(span, key) == value for key, value in more.items())
        )
    )


def test_a_push_and_a_get_are_traces_from_the_command_to_the_pool(
    traced_pool: FunctionPool, receiver: Receiver, tmp_path: Path
) -> None:
    file = tmp_path / SECRET_NAME
    file.write_bytes(b"content that is nobody's business")
    run(traced_pool, receiver, "push", str(file))
    command = of(receiver, "taskworker-cli", "taskworker push")
    assert command.parent == ""
    called = receiver.await_span(lambda span: span.trace == command.trace and span.kind == CLIENT)
    served = receiver.await_span(lambda span: span.parent == called.id)
    assert (served.service, served.kind, served.name) == ("taskworker-pool", SERVER, called.name)
    assert served.attributes["rpc.system.name"] == "grpc"
    assert served.attributes["rpc.method"] == served.name
    assert served.attributes["rpc.response.status_code"] == "OK"
    assert called.attributes["server.port"] == int(traced_pool.address.rpartition(":")[2])
    run(traced_pool, receiver, "get", SECRET_NAME, "-o", str(tmp_path / "got"))
    got = of(receiver, "taskworker-cli", "taskworker get")
    receiver.await_span(lambda span: span.trace == got.trace and span.service == "taskworker-pool")
    assert SECRET_NAME.encode() not in receiver.raw
    assert b"nobody's business" not in receiver.raw


def test_a_call_is_one_trace_through_the_pool_the_worker_and_the_function(
    traced_pool: FunctionPool, receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "tracing_function.py").write_text(FUNCTION)
    traced_pool.deploy("traced", "tracing_function:traced", tmp_path)
    traced_pool.await_workers("traced", 3)
    traced_pool.client.push(b"data", filename="data", user_id="ann")
    shown = run(traced_pool, receiver, "call", "traced", "data").strip()
    command = of(receiver, "taskworker-cli", "taskworker call")
    version, trace, span_id, flags = shown.split("-")
    assert (version, trace) == ("00", command.trace)
    assert int(flags, 16) & 1, "it is recorded"
    call = receiver.await_span(lambda span: span.id == span_id)
    assert (call.service, call.name) == ("taskworker-worker", "call")
    assert call.attributes["faas.name"] == "traced"
    invoked = receiver.await_span(lambda span: span.id == call.parent)
    assert invoked.name.startswith("taskworker.functions.InvocationService/Invoke")
    routed = receiver.await_span(lambda span: span.id == invoked.parent)
    assert (routed.service, routed.kind) == ("taskworker-pool", CLIENT)
    asked = receiver.await_span(lambda span: span.parent == call.id and span.kind == CLIENT)
    answered = receiver.await_span(lambda span: span.parent == asked.id)
    assert (answered.service, answered.trace) == ("taskworker-pool", command.trace)


def test_errors_are_marked_and_a_repair_is_a_span(traced_pool: FunctionPool, receiver: Receiver) -> None:
    failed = subprocess.run(
        [sys.executable, "-m", "taskworker", "get", "nothing", "--pool", traced_pool.address, "--user", "ann"],
        env=os.environ | receiver.environment,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert failed.returncode == 3
    command = receiver.await_span(lambda span: span.name == "taskworker get" and span.is_error)
    assert command.attributes["error.type"] == "Failure"
    traced_pool.start_worker("w3")  # so that shards are to be moved
    of(receiver, "taskworker-pool", "repair")


def test_logs_are_sent(traced_pool: FunctionPool, receiver: Receiver) -> None:
    assert traced_pool.pool_process.alive
    receiver.await_log("taskworker-pool", "KEEP A COPY OF THE MASTER KEY")


def test_nothing_is_imported_unless_it_is_wanted() -> None:
    program = (
        "import sys; from taskworker.tracing.otlp import begin; from taskworker import Client; "
        "begin('s', '1'); Client('127.0.0.1:1').close(); "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    assert subprocess.run([sys.executable, "-c", program], env=clean, check=False).returncode == 0


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://x"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
    ],
)
def test_the_variables_mean_what_opentelemetry_says(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment, "TRACES") == wanted

"""The endpoint answers Prometheus, and nothing that its callers send makes it stop doing so."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from socket import create_connection

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from taskworker.metrics import endpoint as endpoint_module
from taskworker.metrics.endpoint import HEAD_BYTES_MAX, Endpoint
from taskworker.metrics.families import Families, gauge
from taskworker.metrics.figures import Figures
from taskworker.metrics.registry import new_registry, observed_calls

TOKEN = "a-token-of-enough-characters"


@contextlib.contextmanager
def serving(*, token: str = "", tls: ssl.SSLContext | None = None, why: str = "") -> Iterator[int]:
    served = Endpoint(new_registry("1.2.3"), lambda: why, token=token, tls=None if tls is None else lambda: tls)
    port = served.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        served.stop()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as found:
        yield found


def ask(port: int, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> tuple[int, str, Message]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


def send(port: int, raw: bytes) -> bytes:
    """What the endpoint answers to these bytes; empty if it just closes the connection."""
    with create_connection(("127.0.0.1", port), timeout=30) as connection:
        got = b""
        with contextlib.suppress(OSError):  # it may have closed the connection already
            connection.sendall(raw)
            connection.shutdown(1)
            while piece := connection.recv(65536):
                got += piece
        return got


def test_metrics_are_in_the_format_of_prometheus(port: int) -> None:
    status, text, headers = ask(port, "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert families["taskworker_build_info"].samples[0].labels == {"version": "1.2.3"}
    assert families["process_resident_memory_bytes"].samples[0].value > 1 << 20
    assert ask(port, "/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})[1].endswith("# EOF\n")


def test_a_process_is_alive_before_it_is_ready() -> None:
    with serving(why="no workers yet") as port:
        assert ask(port, "/healthz")[:2] == (200, "ok\n")
        assert ask(port, "/readyz")[:2] == (503, "not ready: no workers yet\n")


def test_only_these_paths_and_methods_are_served(port: int) -> None:
    assert ask(port, "/metrics/../../etc/passwd")[0] == 404
    assert ask(port, "/")[0] == 404
    assert ask(port, "/metrics", method="POST")[0] == 501
    status, text, headers = ask(port, "/metrics", method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"])
def test_metrics_and_reasons_are_for_those_with_the_token(shown: str) -> None:
    with serving(token=TOKEN, why="disk failed") as port:
        headers = {"Authorization": shown} if shown else {}
        assert ask(port, "/metrics", headers)[0] == 401
        assert ask(port, "/readyz", headers)[:2] == (503, "not ready\n")
        assert ask(port, "/healthz", headers)[0] == 200
        known = {"Authorization": f"Bearer {TOKEN}"}
        assert ask(port, "/metrics", known)[0] == 200
        assert ask(port, "/readyz", known)[1] == "not ready: disk failed\n"


def test_metrics_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with serving(tls=context) as port:
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=trusting) as answer:
            assert b"taskworker_build_info" in answer.read()
        assert b"taskworker" not in send(port, b"GET /metrics HTTP/1.0\r\n\r\n")
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=ssl.create_default_context())


def test_a_request_with_huge_headers_is_refused(port: int) -> None:
    many = b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * (HEAD_BYTES_MAX // 6)
    one = b"GET /metrics HTTP/1.1\r\nA: " + b"b" * (1 << 20)
    for raw in (many, one, b"G" * (HEAD_BYTES_MAX + 1)):
        answer = send(port, raw)
        # The kernel drops the answer if there are bytes that nobody read.
        assert answer == b"" or answer.startswith(b"HTTP/1.0 431")
    assert ask(port, "/healthz")[0] == 200


def test_nothing_after_a_request_is_read(port: int) -> None:
    first = b"GET /healthz HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    two = first + b"GET /metrics HTTP/1.1\r\n\r\n"
    assert send(port, two).count(b"HTTP/1.0 ") == 1


@given(st.binary(max_size=400) | st.builds(lambda rest: b"GET /metrics HTTP/1.1\r\n" + rest, st.binary(max_size=200)))
@settings(max_examples=60)
def test_any_bytes_are_answered_or_dropped(port: int, raw: bytes) -> None:
    answer = send(port, raw + b"\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.0 ") or b" " in answer  # HTTP/0.9 has no status line
    assert ask(port, "/healthz")[0] == 200


def test_slow_callers_lose_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "HEAD_S", 0.4)
    with serving() as port, contextlib.ExitStack() as slow:
        connections = [slow.enter_context(create_connection(("127.0.0.1", port))) for _ in range(40)]
        trickling = threading.Event()

        def trickle() -> None:
            while not trickling.wait(0.05):
                for connection in connections:
                    with contextlib.suppress(OSError):
                        connection.sendall(b"G")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(RemoteDisconnected, ConnectionError):
                    assert ask(port, "/healthz")[0] == 200
                    break
                assert time.monotonic() < deadline, "slow callers keep all places"
        finally:
            trickling.set()
            thread.join()


def test_one_host_leaves_places_to_others() -> None:
    with serving() as port, contextlib.ExitStack() as silent:
        for _ in range(40):
            silent.enter_context(create_connection(("127.0.0.1", port)))
        other = silent.enter_context(
            create_connection(("127.0.0.1", port), timeout=30, source_address=("127.0.0.2", 0))
        )
        other.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert other.makefile("rb").readline().split()[1] == b"200"


def test_figures_that_cannot_be_read_do_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Families:
        yield gauge("taskworker_first", "The first of two.", 1)
        raise OSError("the disk is gone")

    def unready() -> str:
        raise OSError("the disk is gone")

    registry = new_registry("1.2.3")
    figures = Figures(registry, unready, {"disk": broken, "rest": lambda: iter([gauge("taskworker_rest", "Rest.", 7)])})
    served = Endpoint(registry, figures.unready)
    port = served.start("127.0.0.1", 0)
    try:
        text = ask(port, "/metrics")[1]
        assert ask(port, "/readyz")[:2] == (503, "not ready: the disk is gone\n")
    finally:
        served.stop()
    assert "taskworker_rest 7.0" in text
    assert "taskworker_first" not in text
    assert 'taskworker_collect_failed{part="disk"} 1.0' in text
    assert "taskworker_ready 0.0" in text
    assert "the metrics of the disk cannot be read: the disk is gone" in caplog.text


def test_calls_are_counted_by_their_code() -> None:
    registry = new_registry("1.2.3")
    told = observed_calls(registry)
    get = told.of_rpc("FileService", "Get")
    get.received(10)
    get.sent(4096)
    get.ended(0.003, "OK")
    get.ended(0.2, "NOT_FOUND")
    told.synced(0.004)
    at_codes = {"service": "FileService", "method": "Get"}
    count = "taskworker_rpc_duration_seconds_count"
    assert registry.get_sample_value(count, at_codes | {"code": "OK"}) == 1
    assert registry.get_sample_value(count, at_codes | {"code": "NOT_FOUND"}) == 1
    assert registry.get_sample_value("taskworker_rpc_sent_bytes_total", at_codes) == 4096
    assert registry.get_sample_value("taskworker_volume_sync_duration_seconds_bucket", {"le": "0.005"}) == 1


def test_each_metric_has_a_unit_and_a_help_text() -> None:
    """As Prometheus's conventions ask; promtool checks the rest of them where it is installed."""
    registry = new_registry("1.2.3")
    observed_calls(registry)
    ours = [family for family in registry.collect() if family.name.startswith("taskworker_")]
    assert len(ours) > 6
    for family in ours:
        assert family.documentation.endswith("."), family.name
        assert family.name.endswith(("_seconds", "_bytes", "_info")), family.name

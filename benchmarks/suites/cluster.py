"""A 4-of-6 pool with six workers: push, get, loss and repair, compared with plain sockets and with other stores."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks import cluster_peers
from benchmarks.bare_relay import BareRelay
from benchmarks.cluster.background import beside_background_work, repairs, verifying
from benchmarks.cluster.loaded import small_gets_beside_load
from benchmarks.cluster.outcome import result_of
from benchmarks.cluster.rounds import Rounds
from benchmarks.cluster.samples import Samples
from benchmarks.cluster_peers import Found
from benchmarks.measure import SuiteResult
from benchmarks.session import Session
from benchmarks.workload import RandomContent


def run(session: Session) -> SuiteResult:
    """Measure a healthy pool and one without two of its workers, then load, background work, repair, verification."""
    samples = Samples()
    with ExitStack() as stack:
        root = stack.enter_context(session.scratch("cluster"))
        session.progress.step("starting the bare relay" + (" and the peers" if session.peers else ""))
        bare = stack.enter_context(BareRelay(root))
        found = cluster_peers.start(root) if session.peers else Found([], [])
        for peer in found.peers:
            stack.callback(peer.close)
        sources = _sources(session, root)
        Rounds(session, root, sources, bare, found, samples).run()
        small_gets_beside_load(session, samples)
        beside_background_work(session, samples)
        repairs(session, sources, bare, found, samples)
        verifying(session, sources, samples)
    return result_of(session, samples, found)


def _sources(session: Session, root: Path) -> list[Path]:
    """Make a file for each round, as content that the pool already has would not be sent again."""
    session.progress.step("making the files")
    size = session.sizes.cluster_bytes
    count = max(session.sizes.rounds, session.sizes.cluster_repairs)
    return [RandomContent(f"cluster-{number}", size).write_to(root / f"source-{number}") for number in range(count)]

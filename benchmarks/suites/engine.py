"""Push and get of one large file with the embedded engine, compared with the sequential sum of their parts."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from benchmarks import peers
from benchmarks.measure import MIB, Figure, SuiteResult, Target, megabytes_per_second, seconds_of
from benchmarks.session import Session, human_size, sampled, settle, times
from benchmarks.workload import USER, RandomContent
from storage import FileStorage

READ_BUFFER_BYTES = 4 * MIB
PUSH_LIMIT = "read + BLAKE3 + encode + shard digests + write 1.5x and fsync, one after another"
GET_LIMIT = "read + BLAKE3 + copy out, one after another"
WHOLE_GET_LIMIT = "read + BLAKE3 + copy out into fresh memory, one after another"


@dataclass(slots=True)
class Samples:
    """Seconds by round."""

    push: list[float] = field(default_factory=list)
    open_file: list[float] = field(default_factory=list)
    get: list[float] = field(default_factory=list)
    push_limit: list[Mapping[str, float]] = field(default_factory=list)
    get_limit: list[Mapping[str, float]] = field(default_factory=list)
    whole_get_limit: list[Mapping[str, float]] = field(default_factory=list)
    peers: defaultdict[str, list[peers.PeerTimes]] = field(default_factory=lambda: defaultdict(list))


def run(session: Session) -> SuiteResult:
    """Measure push, read through an open file, and get of one file of random bytes."""
    content = RandomContent("engine", session.sizes.file_bytes)
    samples = Samples()
    others = peers.installed() if session.peers else []
    with session.scratch("engine") as root:
        session.progress.step("making the file")
        source = content.write_to(root / "source")
        for number in session.rounds(f"push and get of {human_size(content.size)}"):
            _subject(root / f"store-{number}", source, content, samples)
            sampled(lambda: session.limits.push_parts(source, content.size), samples.push_limit)
            sampled(lambda: session.limits.get_parts(source, content.size), samples.get_limit)
            sampled(lambda: session.limits.whole_get_parts(source, content.size), samples.whole_get_limit)
            for peer in others:
                with session.scratch("peer") as home:
                    samples.peers[peer.name].append(peers.measure(peer, source, home))
    return _result(session, samples, others)


def read_through(store: FileStorage, file_id: str, buffer: memoryview) -> None:
    """Read a file to its end through one reused buffer."""
    with store.open_file(file_id, user_id=USER) as reader:
        while reader.readinto(buffer):
            pass


def _subject(path: Path, source: Path, content: RandomContent, samples: Samples) -> None:
    """Run one round: push into a fresh store, then read the file in both ways."""
    buffer = memoryview(bytearray(READ_BUFFER_BYTES))
    with FileStorage.open(path) as store:
        settle()
        samples.push.append(seconds_of(lambda: store.push(source, filename="file", user_id=USER)))
        found = store.find("file", user_id=USER)
        assert found is not None
        settle()
        samples.open_file.append(seconds_of(lambda: read_through(store, found.file_id, buffer)))
        samples.get.append(seconds_of(lambda: store.get(found.file_id, user_id=USER)))
        if len(samples.push) == 1 and blake3(store.get(found.file_id, user_id=USER)).digest() != content.digest():
            raise AssertionError("the engine returned other bytes than were pushed")
    shutil.rmtree(path)


def _result(session: Session, samples: Samples, others: list[peers.Peer]) -> SuiteResult:
    size = session.sizes.file_bytes
    label = human_size(size)
    push_limit = times(samples.push_limit).limit(PUSH_LIMIT, size / 1e6)
    get_limit = times(samples.get_limit).limit(GET_LIMIT, size / 1e6)
    whole_limit = times(samples.whole_get_limit).limit(WHOLE_GET_LIMIT, size / 1e6)
    push = Figure(f"push {label}, durable, 4-of-6", "MB/s", megabytes_per_second(size, samples.push), limit=push_limit)
    reader = Figure(
        f"get {label} by open_file + readinto", "MB/s", megabytes_per_second(size, samples.open_file), limit=get_limit
    )
    whole = Figure(f"get {label} as bytes", "MB/s", megabytes_per_second(size, samples.get), limit=whole_limit)
    rest = [figure for peer in others for figure in _peer_figures(peer, label, size, samples)]
    reduced = session.sizes.reduced
    targets = (
        Target(
            "b", "push of 1 GiB / sequential sum of its parts", "at least", 1.0, "x", push.ratios, push.name, reduced
        ),
        Target(
            "b", "get of 1 GiB / sequential sum of its parts", "at least", 1.0, "x", reader.ratios, reader.name, reduced
        ),
    )
    return SuiteResult("engine", (push, reader, whole, *rest), targets, ("All reads are page-cached.",))


def _peer_figures(peer: peers.Peer, label: str, size: int, samples: Samples) -> list[Figure]:
    taken = samples.peers[peer.name]
    push_limit = times(samples.push_limit).limit(PUSH_LIMIT, size / 1e6)
    get_limit = times(samples.get_limit).limit(GET_LIMIT, size / 1e6)
    return [
        Figure(
            f"{peer.name}: push {label}",
            "MB/s",
            megabytes_per_second(size, [one.push for one in taken]),
            limit=push_limit,
            note=peer.note,
        ),
        Figure(
            f"{peer.name}: get {label}",
            "MB/s",
            megabytes_per_second(size, [one.get for one in taken]),
            limit=get_limit,
            note=peer.note,
        ),
    ]

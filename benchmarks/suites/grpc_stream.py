"""Push and get of one large file through gRPC, compared with a bare stream. The server is a separate process."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path

from benchmarks.bare_stream import BareClient
from benchmarks.measure import Figure, Limit, SuiteResult, Target, megabytes_per_second, seconds_of
from benchmarks.processes import ServerProcess
from benchmarks.session import Session, human_size, settle
from benchmarks.workload import USER, Digest, Discard, RandomContent, small_content
from taskworker import Client

RATIO_MIN = 0.7
SMALL_BYTES = 4096
SMALL_GETS = 100
PUSH_LIMIT = "bare stream of 1 MiB messages; its handler writes and fsyncs 1.5x the bytes"
GET_LIMIT = "bare stream of 1 MiB messages; its handler reads the file"
CALL_LIMIT = "bare unary call, 4 KiB back"


@dataclass(slots=True)
class Samples:
    """Seconds by round; for small gets and bare calls, the median of the round."""

    push: list[float] = field(default_factory=list)
    bare_push: list[float] = field(default_factory=list)
    get: list[float] = field(default_factory=list)
    bare_get: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    small_busy: list[float] = field(default_factory=list)
    bare_call: list[float] = field(default_factory=list)


def run(session: Session) -> SuiteResult:
    """In each round, measure a fresh server with a fresh store, and the bare server, alternately."""
    content = RandomContent("grpc", session.sizes.file_bytes)
    samples = Samples()
    with session.scratch("grpc") as root:
        session.progress.step("making the file")
        source = content.write_to(root / "source")
        with ServerProcess("benchmarks.bare_stream", root) as bare_server:
            bare = BareClient(bare_server.address)
            for _ in session.rounds(f"streams of {human_size(content.size)}"):
                with session.scratch("grpc-store") as home:
                    _round(home, source, content, bare, samples)
            bare.close()
    return _result(session, samples)


def _round(home: Path, source: Path, content: RandomContent, bare: BareClient, samples: Samples) -> None:
    with ServerProcess("benchmarks.server", home / "store") as server, Client(server.address) as client:
        small = client.push(small_content("grpc", 0, SMALL_BYTES), filename="small", user_id=USER).file_id
        bare.call()
        settle()
        samples.push.append(seconds_of(lambda: client.push(source, filename="file", user_id=USER)))
        settle()
        samples.bare_push.append(seconds_of(lambda: bare.push(source)))
        settle()
        found = client.find("file", user_id=USER)
        assert found is not None
        samples.get.append(seconds_of(lambda: client.download(found.file_id, BufferedWriter(Discard()), user_id=USER)))
        samples.bare_get.append(seconds_of(lambda: bare.get(source)))
        samples.small.append(_median_call(lambda: client.get(small, user_id=USER), SMALL_GETS))
        samples.bare_call.append(_median_call(bare.call, SMALL_GETS))
        samples.small_busy.append(_small_gets_during_push(client, small, content.size))
        if len(samples.push) == 1:
            _check(client, found.file_id, content)


def _median_call(call: Callable[[], object], count: int) -> float:
    return statistics.median(seconds_of(call) for _ in range(count))


def _small_gets_during_push(client: Client, small: str, size: int) -> float:
    """Return the median seconds of a small get while another file is being pushed."""
    pieces = RandomContent("grpc-other", size).pieces()
    pushing = threading.Thread(target=lambda: client.push(pieces, filename="other", user_id=USER))
    pushing.start()
    taken = []
    while pushing.is_alive():
        taken.append(seconds_of(lambda: client.get(small, user_id=USER)))
    pushing.join()
    return statistics.median(taken)


def _check(client: Client, file_id: str, content: RandomContent) -> None:
    received = Digest()
    with BufferedWriter(received) as target:
        client.download(file_id, target, user_id=USER)
    if received.hasher.digest() != content.digest():
        raise AssertionError("the server returned other bytes than were pushed")


def _result(session: Session, samples: Samples) -> SuiteResult:
    size, reduced = session.sizes.file_bytes, session.sizes.reduced
    label = human_size(size)
    push = Figure(
        f"gRPC push {label}, durable",
        "MB/s",
        megabytes_per_second(size, samples.push),
        limit=Limit(PUSH_LIMIT, megabytes_per_second(size, samples.bare_push)),
    )
    get = Figure(
        f"gRPC get {label}",
        "MB/s",
        megabytes_per_second(size, samples.get),
        limit=Limit(GET_LIMIT, megabytes_per_second(size, samples.bare_get)),
    )
    call = Limit(CALL_LIMIT, _milliseconds(samples.bare_call))
    small = Figure("gRPC get 4 KiB, server idle", "ms", _milliseconds(samples.small), "lower", call)
    busy = Figure(f"gRPC get 4 KiB during a push of {label}", "ms", _milliseconds(samples.small_busy), "lower", call)
    targets = (
        Target("b", "gRPC push / bare stream", "at least", RATIO_MIN, "x", push.ratios, push.name, reduced),
        Target("b", "gRPC get / bare stream", "at least", RATIO_MIN, "x", get.ratios, get.name, reduced),
    )
    remarks = ("Client and server are processes of their own, on loopback; page-cached reads.",)
    return SuiteResult("grpc", (push, get, small, busy), targets, remarks)


def _milliseconds(seconds: list[float]) -> tuple[float, ...]:
    return tuple(one * 1e3 for one in seconds)

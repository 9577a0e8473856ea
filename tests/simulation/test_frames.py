"""The simulated network: what it does to frames shows as the failure of a worker, and never as wrong data."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from blake3 import blake3

from storage import ErasureProfile
from storage.keys import Kind, shard_key
from storage.shards import Shard, VolumeFailed
from storage.stripes.stripes import chunk_stripe
from taskworker.transport.remote_volume import RemoteVolume
from tests.simulation import links
from tests.simulation.clock import Clock
from tests.simulation.disk import MemoryVolume
from tests.simulation.frame_lies import FRAME_LIES
from tests.simulation.model import chunks_of
from tests.simulation.network import TIMEOUT_S, Network, PoolCrashed, Process
from tests.simulation.pool import Cluster
from tests.simulation.servers import Server
from tests.simulation.surroundings import simulated_surroundings

ADDRESS = "sim:w0"
PAYLOAD = Random(1).randbytes(50_000)
KEY = shard_key(chunk_stripe(blake3(PAYLOAD).digest(), ErasureProfile(1, 2)), 0)
OTHER = shard_key(chunk_stripe(blake3(PAYLOAD).digest(), ErasureProfile(1, 2)), 1)
STORED = Shard(KEY, len(PAYLOAD), blake3(PAYLOAD).digest(), PAYLOAD)
OF_OTHER = STORED._replace(key=OTHER)


class Line:
    """A pool's process and a worker with one shard."""

    def __init__(self, seed: int) -> None:
        self.clock = Clock()
        self.network = Network(Random(seed), self.clock)
        self.process = Process(self.network)
        self.disk = MemoryVolume("disk", set())
        self.disk.append([STORED])
        self.server = Server(self.network, ADDRESS, "first", self.disk)
        self.network.servers[ADDRESS] = self.server
        self.volume = self.process.connect(ADDRESS, "w0", "first")


def again_and_again(call: Callable[[RemoteVolume], None], volume: RemoteVolume) -> None:
    for _ in range(3):
        call(volume)


def append(volume: RemoteVolume) -> None:
    volume.append([OF_OTHER])
    volume.sync()


def fetch(volume: RemoteVolume) -> None:
    (payload,) = volume.fetch_all([(KEY, len(PAYLOAD))])
    assert payload is not None
    assert bytes(payload) == PAYLOAD


def read(volume: RemoteVolume) -> None:
    assert volume.read(KEY) == STORED


def list_keys(volume: RemoteVolume) -> None:
    assert list(volume.keys()) == [KEY]


def list_records(volume: RemoteVolume) -> None:
    assert [shard for page in volume.records(frozenset(Kind)) for shard in page] == [STORED]


def locate(volume: RemoteVolume) -> None:
    assert volume.locate_all([KEY, OTHER])[1] is None


def find_missing(volume: RemoteVolume) -> None:
    assert volume.missing([KEY, OTHER]) == [1]


def discard(volume: RemoteVolume) -> None:
    place = volume.locate(KEY)
    assert place is not None
    assert volume.discard(KEY, place)


def remove(volume: RemoteVolume) -> None:
    assert volume.remove([KEY]) == 1


CALLS = (append, fetch, read, list_keys, list_records, locate, find_missing, discard, remove)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("lie", FRAME_LIES)
def test_a_frame_that_no_sound_worker_sends_shows_as_misbehaviour(
    call: Callable[[RemoteVolume], None], lie: Callable[[bytes, Random], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_LIE", 1.0)
    monkeypatch.setattr(links, "told_wrongly", lie)
    for seed in range(5):
        line = Line(seed)
        line.server.liar = True
        with pytest.raises(VolumeFailed):
            call(line.volume)
        assert line.volume.misbehaved
        with pytest.raises(VolumeFailed):
            find_missing(line.volume)


@pytest.mark.parametrize("call", CALLS)
def test_frames_in_pieces_are_whole_again(
    call: Callable[[RemoteVolume], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_IN_PIECES", 0.9)
    monkeypatch.setattr(links, "_FULL", 0.5)
    monkeypatch.setattr(links, "_DELAYED", 0.2)
    for seed in range(10):
        line = Line(seed)
        line.network.punctual = False
        call(line.volume)
        assert not line.volume.misbehaved


@pytest.mark.parametrize("seed", range(10))
def test_a_lost_request_has_no_effect_and_a_lost_reply_has(seed: int) -> None:
    line = Line(seed)
    line.network.lost_requests[ADDRESS] = 1
    with pytest.raises(VolumeFailed):
        append(line.volume)
    assert not line.disk.is_good(OTHER)
    line.volume = line.process.connect(ADDRESS, "w0", "first")
    line.network.lost_replies[ADDRESS] = 1
    with pytest.raises(VolumeFailed):
        append(line.volume)
    assert line.disk.is_good(OTHER)
    assert line.network.injected == {"request lost": 1, "reply lost": 1}
    assert not line.volume.misbehaved


def test_what_was_appended_before_a_worker_stops_may_have_been_received() -> None:
    received = set()
    for seed in range(30):
        line = Line(seed)
        line.volume.append([OF_OTHER])
        line.server.stop()
        received.add(line.disk.is_good(OTHER))
        with pytest.raises(VolumeFailed):
            line.volume.sync()
    assert received == {True, False}


def test_a_worker_that_is_silent_fails_once_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(1)
    find_missing(line.volume)
    before_s = line.clock.monotonic_s()
    monkeypatch.setattr(line.network, "chance", lambda probability: True)
    line.server.reach(reachable=False)
    monkeypatch.undo()
    with pytest.raises(VolumeFailed, match="took longer than"):
        find_missing(line.volume)
    assert line.clock.monotonic_s() >= before_s + TIMEOUT_S
    line.server.reach(reachable=True)
    find_missing(line.process.connect(ADDRESS, "w0", "first"))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("when", [1, 2])
def test_everything_that_a_crashed_process_tries_to_do_raises(call: Callable[[RemoteVolume], None], when: int) -> None:
    line = Line(1)
    line.network.after_calls(when, line.process.die)
    with pytest.raises(PoolCrashed):
        again_and_again(call, line.volume)
    for other in CALLS:
        with pytest.raises(PoolCrashed):
            other(line.volume)
    line.network.flow()
    assert not line.server.connected, "the worker has not noticed that its pool is gone"


def test_a_worker_that_was_started_anew_takes_no_writes_for_its_former_process() -> None:
    line = Line(1)
    append(line.volume)
    line.server.stop()
    line.network.servers[ADDRESS] = Server(line.network, ADDRESS, "second", line.disk)
    line.network.flow()
    assert line.volume.missing([KEY, OTHER]) == [], "nobody was waiting when the connection ended"
    with pytest.raises(VolumeFailed, match="restarted"):
        append(line.volume)


def test_readers_do_not_wait_for_a_silent_worker() -> None:
    with simulated_surroundings():
        cluster = Cluster(Random(1), ErasureProfile(4, 6), 6, zones=1)
        content = PAYLOAD * 3
        version = cluster.pool.store.push(content, filename="f", user_id="u")
        (stripe, *_) = chunks_of(content, cluster.profile)
        silent = cluster.pool.fleet.name(cluster.pool.fleet.holders(stripe)[0])
        (worker,) = (worker for worker in cluster.workers if worker.name == silent)
        cluster.network.chance = lambda probability: probability == 0.5  # type: ignore[method-assign]
        worker.cut_off = True
        worker.listen()
        before_s = cluster.clock.monotonic_s()
        assert cluster.pool.store.get(version.file_id, user_id="u") == content
        assert cluster.clock.monotonic_s() < before_s + TIMEOUT_S, "the fetch was not hedged"

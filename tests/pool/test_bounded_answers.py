"""What one worker answers, and how often and how slowly, is bounded: it stops nobody else's work."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from random import Random
from threading import Event
from typing import cast

import msgspec
import pytest

from storage.keys import Kind, ShardKey
from storage.shards import Shard, ShardStore, VolumeFailed
from taskworker.pool.background.rot_reports import RotReports
from taskworker.pool.membership import WorkerLoad
from taskworker.protos import pool_pb2
from taskworker.services.pool import told
from taskworker.transport.frames import Call, join_keys, pack_shards
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.slowness import Slowness
from taskworker.transport.trust import Trust
from taskworker.transport.wire.outgoing import Parts
from taskworker.transport.wire.server import WireServer
from taskworker.transport.wire.serving import Caller, Method, Style
from tests.pool.helpers import described, made_up_server
from tests.pool.test_fleet import attach, batches_of, manned, stripe_of
from tests.storage.helpers import digest


def key(number: int) -> ShardKey:
    return ShardKey(number.to_bytes(32, "big") + bytes((1, 3, 5, 0)))


def one_page(*numbers: int) -> bytes:
    return join_keys([key(number) for number in numbers])


# -- lists of keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "start", "stop"),
    [
        (one_page(2, 1), b"", None),
        (one_page(1, 1), b"", None),
        (one_page(1, 2), bytes([1]), None),
        (one_page(1, 1 << 250), b"", bytes([1])),
        (b"", b"", None),
    ],
    ids=["out of order", "twice the same", "before the range", "after the range", "an empty page"],
)
def test_a_listing_that_is_none_fails_the_walk(page: bytes, start: bytes, stop: bytes | None) -> None:
    with made_up_server(lambda _name, _request, _context: page) as (address, _):
        volume = RemoteVolume(address, "w")
        with pytest.raises(VolumeFailed, match="nonsense"):
            list(volume.keys(start, stop))
        assert volume.misbehaved
        volume.abandon("end of the test")


@pytest.mark.timeout(20)
def test_an_endless_listing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskworker.transport.remote_volume._KEYS_HELD_MAX", 10_000)
    with streaming(one_page(number) for number in count()) as address:
        volume = RemoteVolume(address, "w")
        with pytest.raises(VolumeFailed, match="endless"):
            list(volume.keys())
        volume.abandon("end of the test")


@pytest.mark.timeout(20)
def test_a_listing_that_stalls_ends() -> None:
    with streaming(iter(lambda: None, 0)) as address:
        volume = RemoteVolume(address, "w", timeout_s=0.3)
        with pytest.raises(VolumeFailed, match="took longer than"):
            list(volume.keys())
        assert volume.misbehaved
        volume.abandon("end of the test")


@pytest.mark.timeout(20)
def test_a_worker_of_which_nothing_is_heard_is_away_and_does_not_misbehave() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # its backlog accepts connections
        volume = RemoteVolume(f"127.0.0.1:{silent.getsockname()[1]}", "w", timeout_s=0.3)
        with pytest.raises(VolumeFailed, match="took longer than"):
            list(volume.keys())
        assert not volume.misbehaved
        volume.abandon("end of the test")


def test_a_worker_that_stalls_again_and_again_is_doubted_and_has_given_out_no_wrong_shard() -> None:
    fleet = manned(7)
    for times in range(1, 4):
        volume = attach(fleet, 2)
        volume.misbehaved = "took longer than 5 s over a part of Keys"  # as the client side of the transport notes it
        fleet.set_offline(2, "it was stopped", cast(ShardStore, volume))
        assert fleet.lies() == {}
        assert fleet.times_lied(2) == times
    assert not fleet.trusts(2)


def test_a_scan_for_records_shows_that_it_goes_on() -> None:
    shard = Shard(key(1), 5, digest(b"hello"), b"hello")
    with streaming(iter([b"", pack_shards([shard]), b""]), Call.RECORDS) as address:
        volume = RemoteVolume(address, "w")
        assert list(volume.records(frozenset({Kind.VERSION}))) == [[], [shard], []]
        volume.abandon("end of the test")


@pytest.mark.timeout(20)
def test_a_scan_for_records_that_stalls_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskworker.transport.remote_volume._SCAN_TIMEOUT_S", 0.3)
    with streaming(iter(lambda: None, 0), Call.RECORDS) as address:
        volume = RemoteVolume(address, "w")
        with pytest.raises(VolumeFailed, match="took longer than"):
            list(volume.records(frozenset({Kind.VERSION})))
        assert volume.misbehaved
        volume.abandon("end of the test")


@pytest.mark.parametrize("size", [6 << 20, 12 << 20])
def test_a_page_of_records_is_not_large(size: int) -> None:
    page = pack_shards([Shard(key(1), size, bytes(32), bytes(size))])
    with streaming(iter([page]), Call.RECORDS) as address:
        volume = RemoteVolume(address, "w")
        with pytest.raises(VolumeFailed, match="nonsense"):
            list(volume.records(frozenset({Kind.VERSION, Kind.TOMBSTONE})))
        assert volume.misbehaved
        volume.abandon("end of the test")


@contextmanager
def streaming(pages: Iterator[bytes | None], call: Call = Call.KEYS) -> Iterator[str]:
    """The address of a server of which a method gives these pages, None for one that does not come."""
    ended = Event()

    def give(_request: memoryview, caller: Caller) -> Iterator[Parts]:
        for page in pages:
            if page is None:
                ended.wait(10)
            if page is None or not caller.is_active():
                return
            yield (page,)

    server = WireServer({call: Method(call.name, Style.STREAM, give)}, described)
    address = server.start("127.0.0.1:0")
    try:
        yield address
    finally:
        ended.set()
        server.stop(0.0)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda volume: volume.compact(0.5), struct.pack("<IQ", 1, 1 << 63)),
        (lambda volume: volume.usage(), msgspec.msgpack.encode(dict.fromkeys(
            ("segments", "bytes_used", "bytes_live", "bytes_free", "shards"), 1 << 63))),
        (lambda volume: volume.usage(), msgspec.msgpack.encode(dict.fromkeys(
            ("segments", "bytes_used", "bytes_live", "bytes_free", "shards"), -1))),
        (lambda volume: volume.verify(lambda _: None), struct.pack("<Q", 1 << 63)),
        (lambda volume: volume.locate(key(1)), struct.pack("<BIQIQ", 1, 0, 0, (1 << 32) - 1, 5)),
    ],
    ids=["freed", "usage", "negative usage", "verified", "length"],
)  # fmt: skip
def test_numbers_that_no_machine_has_are_nonsense(ask: Callable[[RemoteVolume], object], answer: bytes) -> None:
    with made_up_server(lambda _name, _request, _context: answer) as (address, _):
        volume = RemoteVolume(address, "w")
        with pytest.raises(VolumeFailed, match="nonsense"):
            ask(volume)
        volume.abandon("end of the test")


def test_more_shards_are_not_removed_than_were_to_be() -> None:
    with made_up_server(lambda _name, _request, _context: struct.pack("<Q", 1 << 63)) as (address, _):
        volume = RemoteVolume(address, "w")
        assert volume.remove([key(1), key(2)]) == 2
        volume.abandon("end of the test")


def test_a_heartbeat_tells_nothing_that_cannot_be_added_up() -> None:
    load = pool_pb2.Load(
        cpu=float("nan"), bytes_free=(1 << 64) - 1, shards=7, scrub_bytes_per_s=float("inf"), scrub_next_ms=-1
    )
    assert told(load) == WorkerLoad(shards=7)


# -- how often and how slowly ----------------------------------------------------------------------


@dataclass
class Now:
    s: float = 0.0

    def __call__(self) -> float:
        return self.s


def test_rot_that_rises_for_ever_is_acted_on_ever_more_seldom() -> None:
    now = Now()
    reports = RotReports(now)
    acted, told_of = 0, 0
    for _ in range(24 * 3600):
        now.s += 1
        reports.add(3, 1)
        for slot, found in reports.due():
            assert slot == 3
            acted, told_of = acted + 1, told_of + found
    assert acted < 40
    assert told_of > 23 * 3600


def test_rot_after_a_quiet_time_is_acted_on_at_once() -> None:
    now = Now()
    reports = RotReports(now)
    reports.add(3, 1)
    assert reports.due() == [(3, 1)]
    reports.add(3, 1)
    assert reports.due() == []
    now.s += 31
    assert reports.due() == [(3, 1)]
    now.s += 3 * 3600
    reports.add(3, 2)
    assert reports.due() == [(3, 2)]


def test_a_worker_that_keeps_all_waiting_is_slow_after_three_times() -> None:
    now = Now()
    slowness = Slowness(now)
    took = dict.fromkeys(range(6), 0.01) | {6: 4.8}
    assert [slowness.note(took) for _ in range(3)] == [False, False, True]
    assert slowness.slow == {6}
    now.s += 21
    assert slowness.lapse()
    assert not slowness.slow
    assert slowness.note(took), "once more is enough"
    now.s += 21
    assert not slowness.lapse(), "it waits longer each time"
    now.s += 20
    assert slowness.lapse()


def test_a_worker_that_kept_up_for_long_is_left_out_no_longer_than_the_first_time() -> None:
    now = Now()
    slowness = Slowness(now)
    took = dict.fromkeys(range(6), 0.01) | {6: 4.8}
    for out_s in (20, 40):
        assert any(slowness.note(took) for _ in range(3))
        now.s += out_s
        assert slowness.lapse()
    now.s += 400
    assert not slowness.note(dict.fromkeys(range(7), 0.01))
    assert any(slowness.note(took) for _ in range(3))
    now.s += 20
    assert slowness.lapse()


def test_shards_that_could_not_be_read_count_together_within_an_hour() -> None:
    now = Now()
    slowness = Slowness(now)
    assert not any(slowness.note_unread(6) for _ in range(7))
    now.s += 3601
    assert not any(slowness.note_unread(6) for _ in range(7))
    assert slowness.note_unread(6)


def test_a_site_that_is_slow_as_a_whole_has_no_slow_worker() -> None:
    slowness = Slowness(Now())
    rng = Random(1)
    for _ in range(100):
        slowness.note({slot: 3.0 + rng.random() for slot in range(6)})
    assert not slowness.slow


def test_others_stand_in_for_a_slow_worker_and_nobody_waits_for_it() -> None:
    fleet = manned(9)
    volumes = {slot: attach(fleet, slot) for slot in range(9)}
    volumes[4].took_s = 4.8
    for _ in range(3):
        fleet.append_and_sync({slot: [] for slot in range(9)})
    assert fleet.slow() == {4}
    stripes = [stripe_of(seed) for seed in range(40)]
    assert all(4 not in fleet.targets(stripe) for stripe in stripes)
    syncs: list[int] = []
    volumes[4].on_sync = lambda: syncs.append(4)
    fleet.append_and_sync(batches_of(fleet, stripes))
    assert not syncs


def test_a_lie_that_can_be_borne_with_is_forgotten_in_time() -> None:
    now = Now()
    trust = Trust(now)
    assert not trust.note_lie(1)
    assert not trust.is_spotless(1)
    now.s += 601
    trust.lapse()
    assert trust.is_spotless(1)
    assert [trust.note_lie(1) for _ in range(3)] == [False, False, True]
    assert trust.distrusted == {1}
    now.s += 601
    assert trust.lapse() == [1]
    assert trust.total(1) == 4

"""A worker finds the rot on its own disk, forgets it, and tells how much there was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from storage.shards import LocalVolume
from taskworker.transport.worker_fleet import WorkerFleet
from taskworker.worker.self_scrub import SelfScrub
from tests.pool.helpers import key_of, open_volume, shard_of
from tests.storage.helpers import flip, records


def test_rot_is_found_and_forgotten(tmp_path: Path) -> None:
    volume = open_volume(tmp_path)
    volume.append([shard_of(number, 1000) for number in range(5)])
    volume.sync()
    rotten = {key_of(1), key_of(3)}
    for record in records(tmp_path):
        if record.key in rotten:
            flip(record.segment, record.stop - 10)
    stopping = threading.Event()
    scrub = SelfScrub(1 << 30, stopping, first_s=0.0)
    scrub.start(volume)
    while scrub.state.found < 2:
        stopping.wait(0.01)
    stopping.set()
    scrub.join()
    assert {key for key in map(key_of, range(5)) if volume.locate(key) is None} == rotten
    volume.close()


def test_it_keeps_to_its_rate_and_ends_at_once(tmp_path: Path) -> None:
    volume = open_volume(tmp_path)
    volume.append([shard_of(number, 100_000) for number in range(20)])
    stopping = threading.Event()
    scrub = SelfScrub(1000, stopping, first_s=0.0)  # a round would take half an hour
    scrub.start(volume)
    stopping.wait(0.2)
    stopping.set()
    scrub.join()
    assert scrub.state.found == 0
    volume.close()


def test_none_is_run_at_rate_zero(tmp_path: Path) -> None:
    volume: LocalVolume = open_volume(tmp_path)
    scrub = SelfScrub(0, threading.Event(), first_s=0.0)
    scrub.start(volume)
    scrub.join()
    volume.close()


def test_rot_that_is_told_of_has_all_mended_again() -> None:
    fleet = WorkerFleet()
    woken = threading.Event()
    fleet.on_rot = woken.set
    before = fleet.mark()
    fleet.note_rot(0, 2)
    assert fleet.mark() != before
    assert fleet.lies() == {0: 2}
    assert woken.is_set()


def test_a_worker_started_again_goes_on_where_it_was(tmp_path: Path) -> None:
    volume = open_volume(tmp_path / "volume")
    volume.append([shard_of(number, 100_000) for number in range(40)])  # in four segments
    sizes = volume.segment_sizes()
    assert len(sizes) == 4
    kept = tmp_path / "scrub.json"
    scrub = SelfScrub(1 << 30, _Asked(kept.exists), kept, first_s=0.0)
    scrub.start(volume)
    scrub.join()
    assert kept.exists()
    assert scrub.state.ended_ms == 0

    totals: set[int] = set()

    def look() -> bool:
        totals.add(again.state.total)
        return False

    stopping = _Asked(look)
    again = SelfScrub(1 << 30, stopping, kept, first_s=0.0)
    again.start(volume)
    while not again.state.ended_ms:
        stopping.wait(0.01)
    assert totals == {sum(sizes.values()) - sizes[min(sizes)]}, "all but the first segment is read"
    assert again.state.next_ms > again.state.ended_ms
    stopping.set()
    again.join()
    volume.close()


class _Asked(threading.Event):
    """Asked, while bytes are being read, whether the worker is being stopped."""

    def __init__(self, answer: Callable[[], bool]) -> None:
        super().__init__()
        self._answer = answer

    def is_set(self) -> bool:
        return super().is_set() or self._answer()


def test_how_far_it_is_can_be_seen(tmp_path: Path) -> None:
    volume = open_volume(tmp_path / "volume")
    volume.append([shard_of(number, 100_000) for number in range(20)])
    stopping = threading.Event()
    scrub = SelfScrub(1_000_000, stopping, first_s=0.0)
    scrub.start(volume)
    while not 0 < scrub.state.done < scrub.state.total:
        stopping.wait(0.01)
    assert scrub.state.total == sum(volume.segment_sizes().values())
    assert scrub.state.bytes_per_s > 0
    stopping.set()
    scrub.join()
    volume.close()


def test_a_note_that_is_damaged_is_done_without(tmp_path: Path) -> None:
    volume = open_volume(tmp_path / "volume")
    volume.append([shard_of(1)])
    kept = tmp_path / "scrub.json"
    kept.write_bytes(b"{")
    stopping = threading.Event()
    scrub = SelfScrub(1 << 30, stopping, kept, first_s=0.0)
    scrub.start(volume)
    while not scrub.state.ended_ms:
        stopping.wait(0.01)
    stopping.set()
    scrub.join()
    volume.close()

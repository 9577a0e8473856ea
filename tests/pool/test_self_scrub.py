"""A worker finds the rot on its own disk, forgets it, and tells how much there was."""

from __future__ import annotations

import threading
from pathlib import Path

from storage.shards import LocalVolume
from taskworker.pool.fleet import WorkerFleet
from taskworker.self_scrub import SelfScrub
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
    while scrub.found < 2:
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
    assert scrub.found == 0
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

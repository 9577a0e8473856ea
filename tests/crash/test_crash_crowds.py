"""Crash states of a store that many threads work on: commits in groups, flushes beside appends.

Threads make runs that a seed does not bring back; what is chosen of a run is printed with a failure.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from storage import FileStorage
from tests.crash.disk import Disk
from tests.crash.events import Event, Mark, SyncBegun, Synced
from tests.crash.ledger import KEYS, Key, Ledger, Operation
from tests.crash.recording import RecordingFileSystem
from tests.crash.simulation import LOSSES, probe
from tests.crash.stores import CHUNK_BYTES, SETTINGS, Setting, databases, open_store, plain_flushing, write_state
from tests.crash.users import CrashPoint

THREADS = 5
STEPS = 12
POINTS = 12
VARIANTS = 2
FLUSH_S = 0.0005
SIZES = (0, 1, 100, 4096, CHUNK_BYTES, 3 * CHUNK_BYTES)


@pytest.fixture(autouse=True)
def quick_flushing() -> Iterator[None]:
    with plain_flushing():
        yield


class Crowd:
    """Threads with names of their own each, so that operations on a file come one after another."""

    def __init__(self, root: Path, setting: Setting, rng: Random) -> None:
        self.points: list[CrashPoint] = []
        self.recorder = RecordingFileSystem(root, None, self._watch, flush_s=FLUSH_S)
        self._setting = setting
        self._rng = rng
        self._ledger = Ledger()
        self._flying: dict[Key, Operation] = {}
        self._lock = threading.Lock()
        self._choices = Random(rng.random())

    def run(self) -> None:
        """Work until all threads have done their steps."""
        with open_store(self.recorder.root, self._setting, self.recorder) as store:
            with ThreadPoolExecutor(THREADS) as pool:
                rngs = [Random(self._rng.random()) for _ in range(THREADS)]
                futures = [
                    pool.submit(self._work, store, KEYS[thread::THREADS], rng) for thread, rng in enumerate(rngs)
                ]
            for future in futures:
                future.result()
            self.recorder.mark("done")

    def _work(self, store: FileStorage, keys: tuple[Key, ...], rng: Random) -> None:
        for _ in range(STEPS):
            key = rng.choice(keys)
            if key in self._ledger.files and rng.random() < 0.2:
                self._delete(store, key)
            else:
                self._push(store, key, rng.randbytes(rng.choice(SIZES)))
            self.recorder.mark("acknowledged")
            if rng.random() < 0.05:
                store.collect(grace_s=0)

    def _push(self, store: FileStorage, key: Key, content: bytes) -> None:
        with self._lock:
            self._flying[key] = Operation(key, content)
        version = store.push(content, filename=key.name, user_id=key.user)
        with self._lock:
            self._ledger.saved(key, version, content)
            del self._flying[key]

    def _delete(self, store: FileStorage, key: Key) -> None:
        with self._lock:
            self._flying[key] = Operation(key, None)
        store.delete(self._ledger.files[key].file_id, user_id=key.user)
        with self._lock:
            self._ledger.removed(key)
            del self._flying[key]

    def _watch(self, at: int, event: Event) -> None:
        interesting = 0.1 if isinstance(event, Mark | Synced | SyncBegun) else 0.02
        if self._choices.random() < interesting:
            # Together: a delete, whose first event comes after its commit, must not begin in between.
            with self._lock:
                ledger, flying = self._ledger.copy(), tuple(self._flying.values())
                stored = databases(self.recorder.root)
            self.points.append(CrashPoint(at + 1, ledger, flying, stored))


@pytest.mark.parametrize("seed", range(3))
def test_crash_states_of_a_crowd(fast_directory: Path, seed: int) -> None:
    live_and_crash(fast_directory, seed)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 200))
def test_many_crash_states_of_a_crowd(fast_directory: Path, seed: int) -> None:
    live_and_crash(fast_directory, seed)


def live_and_crash(scratch: Path, seed: int) -> None:
    rng, setting = Random(seed), SETTINGS[seed % len(SETTINGS)]
    (scratch / "store").mkdir()
    crowd = Crowd(scratch / "store", setting, rng)
    crowd.run()
    disk, folded = Disk(), 0
    for point in sorted(rng.sample(crowd.points, POINTS), key=lambda point: point.at):
        for at in range(folded, point.at):
            disk.apply(at, crowd.recorder.log[at])
        folded = point.at
        for variant in range(VARIANTS):
            print(f"seed {seed}, after event {point.at} of {len(crowd.recorder.log)}, variant {variant}")
            write_state(disk.after_power_loss(rng.choice(LOSSES), rng), point.databases, scratch / "crashed")
            probe(scratch / "crashed", setting, point, rng)
            shutil.rmtree(scratch / "crashed")

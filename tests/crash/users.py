"""A generation of users at work on a store whose disk is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from storage import FileStorage, InsufficientWorkers
from tests.crash.determinism import Clock
from tests.crash.disk import Disk, Image
from tests.crash.events import Created, Event, Mark, Removed, SyncBegun, Synced, Truncated, WholeBegun
from tests.crash.ledger import KEYS, Key, Ledger, Operation, check, contents
from tests.crash.recording import RecordingFileSystem
from tests.crash.stores import CHUNK_BYTES, Setting, databases, open_store

SIZES = (0, 1, 100, 4096, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 300_000)


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """A moment at which the power might go.

    Attributes:
        at: events of the log that came before.
        ledger: what had been acknowledged.
        flying: what had not.
        databases: the LMDB files, by directory.
    """

    at: int
    ledger: Ledger
    flying: tuple[Operation, ...]
    databases: Image


@dataclass(frozen=True, slots=True)
class World:
    """A store directory between two runs: its files are on the real disk, ``disk`` knows what of them is safe."""

    root: Path
    disk: Disk
    ledger: Ledger
    flying: tuple[Operation, ...] = ()


class Generation:
    """Works on a store, and takes note of moments at which the power might go.

    Args:
        world: where to start.
        setting: the store's kind.
        rng: decides everything.
        clock: the store's.
        steps: operations to do.
        points_max: moments to note.
    """

    def __init__(
        self, world: World, setting: Setting, rng: Random, clock: Clock, *, steps: int, points_max: int
    ) -> None:
        self.points: list[CrashPoint] = []
        self.ledger = world.ledger.copy()
        self._setting = setting
        self._rng = rng
        self._clock = clock
        self._steps = steps
        self._points_max = points_max
        self._flying = world.flying
        self.recorder = RecordingFileSystem(world.root, world.disk, self._watch, together=rng.random() < 0.5)
        self._first = world
        # What to note is chosen apart, so that noting less does not change what is done.
        self._choices = Random(rng.random())

    def run(self) -> None:
        """Open, check what the last generation left, work, close."""
        store = self._open()
        if self._first.ledger.files or self._flying:
            self.ledger = check(store, self.ledger, self._flying)
        self._flying = ()
        for _ in range(self._steps):
            store = self._step(store)
            self.recorder.mark("acknowledged")
        store.close()
        self.recorder.mark("closed")

    def _open(self) -> FileStorage:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("storage.fleet.volumes.new_flusher", lambda parallel: self.recorder.handles)
            store = open_store(self.recorder.root, self._setting, self.recorder)
        self.recorder.mark("opened")
        return store

    def _step(self, store: FileStorage) -> FileStorage:
        if not self.ledger.whole and self._rng.random() < 0.4:
            self._mend(store)
            return store
        action = self._rng.choices(
            (self._push, self._revise, self._delete, self._collect, self._reopen, self._rot, self._lose, self._mend),
            (10, 6, 4, 2, 1, 1, 1, 1),
        )[0]
        return action(store) or store

    # -- what users do ---------------------------------------------------------------------------

    def _push(self, store: FileStorage) -> None:
        key, content = self._rng.choice(KEYS), self._content()
        with self._flight(key, content):
            version = store.push(content, filename=key.name, user_id=key.user)
            self.ledger.saved(key, version, content)

    def _revise(self, store: FileStorage) -> None:
        if not self.ledger.files:
            return
        key = self._existing()
        file = self.ledger.files[key]
        content = self._edited(file.versions[-1].content)
        with self._flight(key, content):
            diff = store.diff(file.file_id, content, user_id=key.user)
            version = store.revise(file.file_id, diff, user_id=key.user)
            self.ledger.saved(key, version, content)

    def _delete(self, store: FileStorage) -> None:
        if not self.ledger.files:
            return
        key = self._existing()
        with self._flight(key, None):
            store.delete(self.ledger.files[key].file_id, user_id=key.user)
            self.ledger.removed(key)

    def _collect(self, store: FileStorage) -> None:
        store.collect(grace_s=0)

    def _reopen(self, store: FileStorage) -> FileStorage:
        store.close()
        self.recorder.mark("closed")
        return self._open()

    # -- what befalls volumes, one at a time -----------------------------------------------------

    def _rot(self, store: FileStorage) -> None:
        segments = self.recorder.segments()
        if not self.ledger.whole or not segments:
            return
        self.ledger.whole, self.ledger.rotten = False, True
        path = self._rng.choice(segments)
        self.recorder.rot(path, self._rng.randrange(path.stat().st_size))

    def _lose(self, store: FileStorage) -> None:
        if not self.ledger.whole:
            return
        self.ledger.whole = False
        path = store.volume_paths[self._rng.randrange(self._setting.volume_count)]
        self.recorder.lose(path)

    def _mend(self, store: FileStorage) -> None:
        self._clock.advance(2)  # volumes are looked for once a second
        store.scrub()
        report = store.repair()
        assert report.complete, report.lost
        self.ledger.whole = True

    # -- helpers ---------------------------------------------------------------------------------

    def _flight(self, key: Key, content: bytes | None) -> _Flight:
        return _Flight(self, Operation(key, content))

    def fly(self, *operations: Operation) -> None:
        """Say what is under way."""
        self._flying = operations

    def _existing(self) -> Key:
        return self._rng.choice(sorted(self.ledger.files))

    def _content(self) -> bytes:
        known = list(contents(self.ledger))
        if known and self._rng.random() < 0.3:
            return self._rng.choice(known)
        return self._rng.randbytes(self._rng.choice(SIZES))

    def _edited(self, content: bytes) -> bytes:
        edited = bytearray(content)
        for _ in range(self._rng.randrange(3)):
            at = self._rng.randrange(len(edited) + 1)
            edited[at : at + 3] = self._rng.randbytes(self._rng.choice((3, 3, 5000)))
        return bytes(edited)

    # -- noting moments --------------------------------------------------------------------------

    def _watch(self, at: int, event: Event) -> None:
        if len(self.points) < self._points_max and self._choices.random() < _interest(event):
            self.points.append(CrashPoint(at + 1, self.ledger.copy(), self._flying, databases(self.recorder.root)))


class _Flight:
    """While inside, an operation is under way. A refusal for want of volumes ends it without effect."""

    def __init__(self, generation: Generation, operation: Operation) -> None:
        self._generation = generation
        self._operation = operation

    def __enter__(self) -> None:
        self._generation.fly(self._operation)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        self._generation.fly()
        if isinstance(error, InsufficientWorkers):
            self._generation.ledger.ghosts.append(self._operation)
            return True
        return False


def _interest(event: Event) -> float:
    """Probability of a moment right after an event to be noted: rare events tell more."""
    match event:
        case Created() | Removed() | Truncated() | WholeBegun():
            return 0.3
        case Mark():
            return 0.3
        case SyncBegun() | Synced():
            return 0.1
        case _:
            return 0.05

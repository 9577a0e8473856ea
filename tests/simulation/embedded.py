"""An embedded store on real volumes: calls of its machine fail for a while, its process forks, its clock is set.

The volumes' directories are in memory; their file system is that of :mod:`tests.simulation.machine`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from storage import ErasureProfile, FileStorage, Version
from storage.errors import (
    FormatError,
    InsufficientWorkers,
    StorageError,
    StoreFull,
    StoreUnavailable,
    UsedAfterFork,
)
from storage.fleet.volumes import VolumeOptions
from storage.keys import StripeKey, shard_key
from storage.shards.identity import SEGMENT_SUFFIX
from storage.system.forks import forks
from tests.crash.determinism import Clock, deterministic
from tests.crash.stores import plain_flushing
from tests.simulation.invariants import require
from tests.simulation.machine import CALLS_BY_ERRNO, Machine, Trouble, unreliable
from tests.simulation.model import NAMES, File, Kept, Name, NothingToDo, chunks_of, edited, large_content, small_content
from tests.simulation.pool import CHUNK_BYTES, simulated_keys

_PROFILES = ((2, 4), (2, 3), (3, 5))
_SEGMENT_BYTES = (128 * 1024, 512 * 1024)
_START_S = 1_700_000_000
_CENTURY_S = 100 * 365 * 86400
_CLOCK_JUMPS_S = (0, 25 * 3600, -25 * 3600, _CENTURY_S, -_CENTURY_S)
_MEMORY = Path("/dev/shm")
_ROUNDS_MAX = 5
_PAUSE_S_MAX = 11.0  # longer than any pause of storage.system.backoff

Action = Callable[[], str]


class _Clock(Clock):
    """A clock whose wall time may be wrong, while its monotonic time is right."""

    wrong_ns = 0

    def time_ns(self) -> int:
        return super().time_ns() + self.wrong_ns

    def monotonic(self) -> float:
        return super().time_ns() / 1e9


class EmbeddedSimulation:
    """A simulation of an embedded store.

    Args:
        seed: determines everything.
        faults_min: the simulation goes on until there were so many faults.
    """

    def __init__(self, seed: int, faults_min: int) -> None:
        self.trace: list[str] = []
        self.rng = Random(seed)
        self.machine = Machine()
        self.clock = _Clock(_START_S)
        self.profile = ErasureProfile(*self.rng.choice(_PROFILES))
        self.files: dict[Name, File] = {}
        self.wounded = False  # whether a volume was damaged since the last complete repair
        self.root = Path(tempfile.mkdtemp(prefix="taskworker-simulation-", dir=_MEMORY if _usable(_MEMORY) else None))
        self._faults_min = faults_min
        self._keys = simulated_keys(seed)
        self._options = VolumeOptions(unreliable(self.machine), self.rng.choice(_SEGMENT_BYTES))
        self._actions, self._disturbances = self._weighted()

    @property
    def injected(self) -> Counter[str]:
        """Faults so far, by kind."""
        return self.machine.injected

    def run(self) -> None:
        """Run all steps, and check the end state."""
        try:
            with plain_flushing(), deterministic(self.rng, self.clock):
                self.store = self._open()
                try:
                    while self.injected.total() < self._faults_min:
                        self._step(self._disturbances)
                        self._step(self._actions)
                    self._end()
                finally:
                    self.store.close()
        finally:
            shutil.rmtree(self.root)

    # -- steps -----------------------------------------------------------------------------------

    def _weighted(self) -> tuple[dict[Action, float], dict[Action, float]]:
        actions: dict[Action, float] = {
            self.push_small: 10, self.push_large: 4, self.revise: 3, self.delete: 1.5, self.get: 14,
            self.collect: 1.5, self.scrub: 1.5, self.repair: 1.5, self.reopen: 0.7, self.count_losses: 2,
        }  # fmt: skip
        disturbances: dict[Action, float] = {
            self.begin_trouble: 30, self.end_troubles: 6, self.fork: 1, self.jump_clock: 1, self.rot: 0.5,
            self.swap_volumes: 0.2, self.age_volume: 0.4,
        }  # fmt: skip
        return actions, disturbances

    def _step(self, weights: dict[Action, float]) -> None:
        action = self.rng.choices(list(weights), list(weights.values()))[0]
        with suppress(NothingToDo):
            self._do(action)

    def _do(self, action: Action) -> None:
        try:
            self._note(action.__name__, action())
        except NothingToDo:
            raise
        except BaseException:
            self._note(action.__name__, "!")
            raise

    def _note(self, what: str, outcome: str) -> None:
        self.trace.append(f"{len(self.trace):4} {what}: {self.without_place(outcome)}")

    def without_place(self, text: str) -> str:
        """Return a text without the store's directory, so that it is the same in every run."""
        return text.replace(str(self.root), "ROOT")

    def _open(self) -> FileStorage:
        volumes = [self._volume(slot) for slot in range(self.profile.n)]
        return FileStorage.open(
            self.root / "store",
            profile=self.profile,
            volumes=volumes,
            chunk_size=CHUNK_BYTES,
            key=self._keys,
            volume_options=self._options,
        )

    def _volume(self, slot: int) -> Path:
        return self.root / "store" / f"volume{slot}"

    # -- what users do ---------------------------------------------------------------------------

    def push_small(self) -> str:
        return self._push(small_content(self.rng))

    def push_large(self) -> str:
        return self._push(large_content(self.rng))

    def _push(self, content: bytes) -> str:
        name = self.rng.choice(NAMES)
        return self._write(name, content, lambda: self.store.push(content, filename=name.filename, user_id=name.user))

    def revise(self) -> str:
        name, file = self._some_file()
        content = edited(file.head.content, self.rng)

        def work() -> Version:
            diff = self.store.diff(file.file_id, content, user_id=name.user)
            return self.store.revise(file.file_id, diff, user_id=name.user)

        return self._write(name, content, work)

    def _write(self, name: Name, content: bytes, work: Callable[[], Version]) -> str:
        ailing = self._ailing()
        try:
            version = work()
        except StorageError as error:
            if type(error) in (InsufficientWorkers, StoreFull):
                borne = self.profile.n - self.profile.k - 1
                require(len(ailing) > borne, f"{name} is refused though only {sorted(ailing)} ail: {error!r}")
            return self._refused(name, error)
        file = self.files.setdefault(name, File(version.file_id))
        if not file.versions or file.head.version_id != version.version_id:
            file.versions.append(Kept(version.version_id, content, ()))
        return f"{name} {len(content)} bytes -> {version.version_id[:8]}"

    def _ailing(self) -> set[int]:
        """Return the volumes that may fail to write now."""
        everywhere = any(trouble.directory is None for trouble in self.machine.troubles)
        struck = {trouble.directory for trouble in self.machine.troubles}
        return {
            slot
            for slot in range(self.profile.n)
            if everywhere or self._volume(slot).name in struck or self._is_unusable(slot)
        }

    def _is_unusable(self, slot: int) -> bool:
        volume = self.store._volumes.volume(slot)
        return volume is None or volume.state[0] in ("failed", "read-only", "full")

    def count_losses(self) -> str:
        """Check that the store does not claim to survive more losses than its files do.

        Shards that were set aside because they could not be read do not count as missing: they are reported as damage,
        and are found again.
        """
        if self.wounded or self.machine.troubles:
            raise NothingToDo
        told = self.store.stats().losses_survivable
        if self.store._volumes.away():
            raise NothingToDo
        for name, file in self.files.items():
            key = self.store.upkeep.keys.keys_of(name.user).current
            stripes = sorted({one for kept in file.versions for one in chunks_of(kept.content, self.profile, key)})
            missing = max(map(self._unwritten, stripes), default=0)
            survives = self.profile.n - self.profile.k - missing
            require(told <= max(0, survives), f"{name} survives {survives} losses, not {told}")
        return f"{told} may be lost"

    def _unwritten(self, stripe: StripeKey) -> int:
        """Return how many shards of a stripe are unknown to their volumes."""
        count = 0
        for slot, holder in enumerate(self.store._volumes.holders(stripe)):
            volume, key = self.store._volumes.volume(holder), shard_key(stripe, slot)
            count += volume is None or (volume.locate(key) is None and key not in volume.all_aside())
        return count

    def _refused(self, name: Name, error: StorageError) -> str:
        require(_may_pass(error), f"{name}: {error!r}")
        self._check_head(name)
        return f"{name}: {type(error).__name__}: {error}"

    def delete(self) -> str:
        name, file = self._some_file()
        try:
            self.store.delete(file.file_id, user_id=name.user)
        except StorageError as error:
            return self._refused(name, error)
        del self.files[name]
        return str(name)

    def get(self) -> str:
        name, file = self._some_file()
        kept = self.rng.choice(file.versions)
        troubled = bool(self.machine.troubles)
        try:
            got = self.store.get(file.file_id, user_id=name.user, version_id=kept.version_id)
        except StorageError as error:
            require(_may_pass(error), f"{name}: {error!r}")
            if not troubled:
                self._read_after_pause(name, file, kept)
            return f"{name} {kept.version_id[:8]} is out of reach: {error}"
        require(got == kept.content, f"{name} {kept.version_id[:8]} was read wrong")
        return f"{name} {kept.version_id[:8]}"

    def _read_after_pause(self, name: Name, file: File, kept: Kept) -> None:
        """Check that a version can be read after a pause long enough for all failed volumes to be tried again.

        Until then a read may be refused, as volumes pause between attempts. Their states do not show whether one paused
        during the read, as asking for them retries volumes whose pause has ended.
        """
        self.clock.advance(_PAUSE_S_MAX)
        got = self.store.get(file.file_id, user_id=name.user, version_id=kept.version_id)
        require(got == kept.content, f"{name} {kept.version_id[:8]} was read wrong")

    def _some_file(self) -> tuple[Name, File]:
        if not self.files:
            raise NothingToDo
        return self.rng.choice(list(self.files.items()))

    def _check_head(self, name: Name) -> None:
        known, head = self.files.get(name), self.store.find(name.filename, user_id=name.user)
        told, is_there = known and known.head.version_id, head and head.version_id
        require(told == is_there, f"the head of {name} is {is_there}, not {told}")

    # -- maintenance ----------------------------------------------------------------------------------

    def collect(self) -> str:
        return self._maintenance(lambda: self.store.collect(grace_s=self.rng.choice((0.0, 86400.0))))

    def scrub(self) -> str:
        return self._maintenance(self.store.scrub)

    def repair(self) -> str:
        return self._maintenance(self.store.repair)

    def _maintenance(self, work: Callable[[], object]) -> str:
        try:
            return str(work())[:100]
        except StorageError as error:
            require(_may_pass(error), f"maintenance failed: {error!r}")
            return f"{type(error).__name__}: {error}"

    def reopen(self) -> str:
        """Close the store and open it again, whatever troubles the machine has."""
        self.store.close()
        for troubles in (len(self.machine.troubles), 0):
            try:
                self.store = self._open()
            except (StorageError, OSError) as error:
                require(troubles > 0, f"the store cannot be opened: {error!r}")
                self._note("open", repr(error))
                self.machine.end()
            else:
                return "opened"
        raise AssertionError("unreachable")

    # -- faults ----------------------------------------------------------------------------------

    def begin_trouble(self) -> str:
        """Let the machine refuse some calls: mostly a few of them, sometimes for long."""
        number = self.rng.choice(list(CALLS_BY_ERRNO))
        possible = sorted(CALLS_BY_ERRNO[number])
        calls = CALLS_BY_ERRNO[number] if self.rng.random() < 0.5 else frozenset(self.rng.sample(possible, 2))
        slot = self.rng.randrange(self.profile.n + 3)  # n or higher: all volumes
        directory = self._volume(slot).name if slot < self.profile.n else None
        after = self.rng.choice((0, 0, 0, 1, 2, 5, 15))
        left = self.rng.choice((1, 1, 2, 3, 10, -1))
        self.machine.begin(Trouble(number, calls, directory, after, left))
        return f"errno {number} of {', '.join(sorted(calls))} in {directory or 'all'}: {left} after {after}"

    def end_troubles(self) -> str:
        if not self.machine.troubles:
            raise NothingToDo
        self.machine.end()
        return "all is well"

    def fork(self) -> str:
        """Let a forked child use and close the store; this must not harm the parent."""
        forks.count += 1
        try:
            for use in (lambda: self.store.find("a", user_id="ada"), self.store.stats, self.store.collect):
                try:
                    use()
                except UsedAfterFork:
                    continue
                require(False, "a forked child may use the store")
            self.store.close()
        finally:
            forks.count -= 1
        self.injected["forked"] += 1
        return "used in a child"

    def jump_clock(self) -> str:
        """Set the wall clock to a wrong time."""
        seconds = self.rng.choice(_CLOCK_JUMPS_S)
        self.clock.wrong_ns = seconds * 1_000_000_000
        self.injected["clock jumped"] += 1
        return f"{seconds} s from the true time"

    def rot(self) -> str:
        """Change a byte of one volume while all volumes are complete."""
        slot = self._make_whole()
        paths = sorted(self._volume(slot).glob(f"*{SEGMENT_SUFFIX}"))
        path = self.rng.choice(paths) if paths else None
        size = path.stat().st_size if path is not None else 0
        if path is None or size <= 4096:
            raise NothingToDo
        with path.open("r+b") as stream:
            stream.seek(self.rng.randrange(4096, size))
            stream.write(b"\x55")
        self.wounded = True
        self.injected["rot"] += 1
        return f"volume {slot}"

    def swap_volumes(self) -> str:
        """Exchange the directories of two volumes. The store must notice, and not change them."""
        self.machine.end()
        self.store.close()
        first, second = self.rng.sample(range(self.profile.n), 2)
        self._exchange(first, second)
        try:
            self._open().close()
        except FormatError as error:
            told = str(error)
        else:
            raise AssertionError("swapped volumes are not noticed")
        self._exchange(first, second)
        self.store = self._open()
        self.injected["volumes swapped"] += 1
        return told

    def _exchange(self, first: int, second: int) -> None:
        aside = self.root / "aside"
        self._volume(first).rename(aside)
        self._volume(second).rename(self._volume(first))
        aside.rename(self._volume(second))

    def age_volume(self) -> str:
        """Restore a volume from an old copy."""
        slot = self._make_whole()
        self.store.close()
        copy = self.root / "copy"
        shutil.copytree(self._volume(slot), copy)
        self.store = self._open()
        for _ in range(5):
            with suppress(NothingToDo):
                self._do(self.rng.choice((self.push_small, self.push_large, self.delete, self.collect)))
        self.store.close()
        shutil.rmtree(self._volume(slot))
        copy.rename(self._volume(slot))
        self.store = self._open()
        self.wounded = True
        self.injected["volume stale"] += 1
        return f"volume {slot}"

    def _make_whole(self) -> int:
        """Repair everything, so that a volume may be damaged; return that volume."""
        if self.wounded:
            raise NothingToDo
        self._mend()
        return self.rng.randrange(self.profile.n)

    def _mend(self) -> None:
        """End all troubles and repair the store; nothing may be lost."""
        self.machine.end()
        for _ in range(_ROUNDS_MAX):
            self.clock.advance(3600)
            self.store.scrub()
            report = self.store.repair()
            require(not report.lost_count, f"lost: {report}")
            if report.complete and all(volume.state == "ok" for volume in self.store.stats().volumes):
                break
        else:
            require(False, f"the store does not recover: {self.store.stats().volumes}")
        self.wounded = False

    def _end(self) -> None:
        self._mend()
        require(self.store.scrub().clean, "not all is in its place")
        self._check_everything()
        for slot in self.rng.sample(range(self.profile.n), self.profile.n - self.profile.k):
            self.store.close()
            shutil.rmtree(self._volume(slot))
            self.store = self._open()
        self._check_everything()

    def _check_everything(self) -> None:
        for name in NAMES:
            self._check_head(name)
        for name, file in self.files.items():
            for kept in file.versions:
                got = self.store.get(file.file_id, user_id=name.user, version_id=kept.version_id)
                require(got == kept.content, f"{name} {kept.version_id[:8]} was read wrong")


def _may_pass(error: StorageError) -> bool:
    """Whether an error says that something cannot be done now, rather than that data is lost or wrong."""
    return isinstance(error, InsufficientWorkers | StoreFull | StoreUnavailable)


def _usable(directory: Path) -> bool:
    return os.access(directory, os.W_OK)

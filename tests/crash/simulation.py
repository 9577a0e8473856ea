"""A store's life on a disk that loses power, from one seed.

A generation of users works on a store whose disk is recorded. At many moments of that, the states are
made that a crash might leave right then; each is opened and held against what users had been told. One
of them is where the next generation goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from storage import FileStorage
from storage.shards.filesystem import LocalFileSystem
from storage.shards.identity import SEGMENT_SUFFIX, read_identity
from storage.shards.record import SEGMENT_HEADER_BYTES
from storage.shards.scan import Gap, scan_records
from tests.crash.determinism import Clock, deterministic
from tests.crash.disk import Disk, PowerLoss
from tests.crash.events import Event
from tests.crash.ledger import KEYS, Ledger, check, check_rebuilt
from tests.crash.stores import SETTINGS, Setting, limits_of, open_store, plain_flushing, write_state
from tests.crash.users import CrashPoint, Generation, World

_GENERATION_S = 1000  # of the store's clock from one generation to the next

LOSSES = (
    PowerLoss(survive=0.0),
    PowerLoss(survive=0.0, fill="garbage"),
    PowerLoss(survive=0.5),
    PowerLoss(survive=0.5, tear=0.5),
    PowerLoss(survive=0.8, tear=0.3, fill="garbage"),
    PowerLoss(survive=0.6, tear=0.5, fill="stale"),
    PowerLoss(survive=0.2, tear=0.5, fill="garbage"),
    PowerLoss(survive=1.0, tear=0.5),
)


@dataclass(slots=True)
class Campaign:
    """A chain of generations from one seed; ``states`` counts the crash states that were opened.

    Args:
        seed: decides everything.
        scratch: an empty directory.
        generations, steps, points, variants: how much to do.
    """

    seed: int
    scratch: Path
    generations: int = 3
    steps: int = 14
    points: int = 6
    variants: int = 2
    states: int = 0
    where: str = ""
    rng: Random = field(init=False)
    setting: Setting = field(init=False)

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.setting = SETTINGS[self.seed % len(SETTINGS)]

    def run(self) -> None:
        """Live through all generations; an error is told with what brings it about again."""
        try:
            world = World(self._directory("start"), Disk(), Ledger())
            with plain_flushing():
                for number in range(self.generations):
                    world = self._generation(number, world)
        except BaseException as error:
            error.add_note(f"seed {self.seed}: {self.where}")
            raise

    def _generation(self, number: int, world: World) -> World:
        self.where = f"generation {number}, while it worked"
        rng = Random(self.rng.random())
        clock = Clock((number + 1) * _GENERATION_S)
        generation = Generation(world, self.setting, rng, clock, steps=self.steps, points_max=10 * self.points)
        with deterministic(rng, clock), limits_of(self.setting):
            generation.run()
        points = sorted(self.rng.sample(generation.points, min(self.points, len(generation.points))), key=_position)
        successor = self.rng.randrange(len(points))
        next_world = world
        for index, (point, disk) in enumerate(_disks(world.disk, generation.recorder.log, points)):
            for variant in range(self.variants):
                self.where = f"generation {number}, crash after event {point.at}, variant {variant}"
                self._examine(point, disk, Random(self.rng.random()))
            if index == successor:
                next_world = self._survivor(number, point, disk)
        shutil.rmtree(world.root)
        return next_world

    def _examine(self, point: CrashPoint, disk: Disk, rng: Random) -> None:
        self.states += 1
        root = self._directory("crashed")
        image = disk.after_power_loss(rng.choice(LOSSES), rng)
        write_state(image, point.databases, root, keep_index=rng.random() < 0.9)
        self.where += f" in {root}"
        probe(root, self.setting, point, rng)
        shutil.rmtree(root)

    def _survivor(self, number: int, point: CrashPoint, disk: Disk) -> World:
        """The state in which the next generation finds the store."""
        root = self._directory(f"generation-{number + 1}")
        if self.rng.random() < 0.4:
            after, image = disk.after_kill(), disk.cached()
        else:
            image = disk.after_power_loss(self.rng.choice(LOSSES), self.rng)
            after = Disk.holding(image)
        write_state(image, point.databases, root)
        return World(root, after, point.ledger, point.flying)

    def _directory(self, name: str) -> Path:
        path = self.scratch / name
        path.mkdir()
        return path


def _position(point: CrashPoint) -> int:
    return point.at


def _disks(start: Disk, log: list[Event], points: list[CrashPoint]) -> Iterator[tuple[CrashPoint, Disk]]:
    """The disk at each point, in order."""
    at = 0
    for point in points:
        while at < point.at:
            start.apply(at, log[at])
            at += 1
        yield point, start


# -- what must hold in every crash state ---------------------------------------------------------


def probe(root: Path, setting: Setting, point: CrashPoint, rng: Random) -> None:
    """Open a crash state, hold it against the ledger, and go on using it; now and then without its catalog."""
    if rng.random() < 0.25:
        probe_rebuild(root, setting, point)
        return
    if rng.random() < 0.3 and not point.ledger.rotten:
        last_segments = [max(path.glob(f"*{SEGMENT_SUFFIX}"), default=None) for path in root.glob("volumes/*")]
        open_store(root, setting).close()
        for segment in last_segments:
            check_end(segment, setting)
    with open_store(root, setting) as store:
        ledger = check(store, point.ledger, point.flying)
        check_shards(store, ledger)
        use(store, ledger, rng)
    with open_store(root, setting) as store:
        check(store, ledger)
        check_shards(store, ledger)
    # Nothing of that counts on the engine's own word for what is intact.
    for slot in rng.sample(range(setting.volume_count), setting.profile.n - setting.profile.k):
        shutil.rmtree(root / "volumes" / str(slot))
    with open_store(root, setting) as store:
        check(store, ledger)


def check_end(segment: Path | None, setting: Setting) -> None:
    """What a crash left behind the last record of a volume was cut off, or there was none and all is gone."""
    identity = read_identity(segment.parent) if segment is not None else None
    if segment is None or identity is None or not segment.exists():
        return
    file, size = LocalFileSystem().open(segment, writable=False), segment.stat().st_size
    found = list(scan_records(file, bytes.fromhex(identity.key), SEGMENT_HEADER_BYTES, size))
    if found and isinstance(found[-1], Gap):
        assert found[-1].offset >= setting.segment_bytes_max, f"{segment} has room, and ends in {found[-1]}"


def probe_rebuild(root: Path, setting: Setting, point: CrashPoint) -> None:
    """Make the catalog of a crash state again from its volumes."""
    shutil.rmtree(root / "catalog")
    with open_store(root, setting) as store:
        if not store.needs_rebuild:
            assert not point.ledger.files, "volumes with files were taken for a new store"
            return
        store.rebuild()
        check_rebuilt(store, point.ledger, point.flying)
        store.scrub()
        assert store.repair().complete
    with open_store(root, setting) as store:
        check_rebuilt(store, point.ledger, point.flying)
        assert store.scrub().clean


def check_shards(store: FileStorage, ledger: Ledger) -> None:
    """Every shard is in its place, or can be made again."""
    report = store.scrub()
    assert report.clean or not ledger.whole, report.damaged
    if not report.clean:
        repaired = store.repair()
        assert repaired.complete, repaired.lost
        assert store.scrub().clean
    ledger.whole = True


def use(store: FileStorage, ledger: Ledger, rng: Random) -> None:
    """Store anew what the crash may have left parts of, and something else."""
    leftovers = [ghost.content for ghost in ledger.ghosts[-2:] if ghost.content is not None]
    for content in (*leftovers, rng.randbytes(rng.choice((10, 100_000)))):
        key = rng.choice(KEYS)
        ledger.saved(key, store.push(content, filename=key.name, user_id=key.user), content)
    if len(ledger.files) > 1:
        key = rng.choice(sorted(ledger.files))
        store.delete(ledger.files[key].file_id, user_id=key.user)
        ledger.removed(key)
    if rng.random() < 0.3:
        store.collect(grace_s=0)

"""A recorded store of which every event is a moment at which it may end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage import FileStorage
from tests.crash.disk import Disk, Image
from tests.crash.events import Event
from tests.crash.ledger import Ledger
from tests.crash.recording import RecordingFileSystem
from tests.crash.stores import Setting, databases, open_store, write_state
from tests.crash.users import World


@dataclass(frozen=True, slots=True)
class Moment:
    """After ``at`` events the databases were these."""

    at: int
    databases: Image


class Session:
    """Opens the store of a world on a recorded disk."""

    def __init__(self, world: World, setting: Setting) -> None:
        self.moments: list[Moment] = []
        self._disk = world.disk
        self._folded = 0
        self._setting = setting
        self._noting = False
        self.recorder = RecordingFileSystem(world.root, world.disk, self._watch)

    def open(self) -> FileStorage:
        return open_store(self.recorder.root, self._setting, self.recorder)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Every event inside is followed by a moment."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def disks(self) -> Iterator[tuple[Moment, Disk]]:
        """The disk at each moment noted, in order; the same object, so take from it what is needed."""
        for moment in self.moments:
            yield moment, self._fold(moment.at)

    def now(self) -> tuple[Moment, Disk]:
        """Databases and disk as they are at this moment."""
        moment = Moment(len(self.recorder.log), databases(self.recorder.root))
        return moment, self._fold(moment.at)

    def _fold(self, until: int) -> Disk:
        for at in range(self._folded, until):
            self._disk.apply(at, self.recorder.log[at])
        self._folded = max(self._folded, until)
        return self._disk

    def _watch(self, at: int, event: Event) -> None:
        if self._noting:
            self.moments.append(Moment(at + 1, databases(self.recorder.root)))


def fresh(root: Path) -> World:
    """Nothing yet."""
    root.mkdir()
    return World(root, Disk(), Ledger())


def killed(root: Path, moment: Moment, disk: Disk) -> World:
    """The process died at a moment: all it wrote is in the page cache, none of it any safer than before."""
    root.mkdir()
    write_state(disk.cached(), moment.databases, root)
    return World(root, disk.after_kill(), Ledger())

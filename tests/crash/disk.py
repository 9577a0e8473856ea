"""A model of disk and page cache: what of a log of events is durable, and what a crash may leave of the rest.

POSIX alone is taken for granted: a file's bytes and length are safe once its flush has ended, a name
once its directory's has. Everything else may be there after a power cut or not, in any combination.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from random import Random
from typing import Literal

from tests.crash.events import (
    CacheDropped,
    Created,
    DirectoryMade,
    Event,
    Lost,
    Removed,
    Rotted,
    Synced,
    SyncFailed,
    Truncated,
    WholeBegun,
    WholeWritten,
    Written,
)

Image = dict[str, dict[str, bytes]]
"""Directory → name → content."""

_EARLIER = -1  # position of what happened before the log began
_DURABLE = -2  # position of what a crash cannot undo
_SECTOR_BYTES = 512
_GARBAGE_BYTES_MAX = 6000


@dataclass(frozen=True, slots=True)
class PowerLoss:
    """How a power cut treats what was not durable.

    Attributes:
        survive: probability of each write, cut and name to have reached the disk.
        tear: probability of a surviving write to have reached it in part only.
        fill: what is read where a file grew without its data.
    """

    survive: float
    tear: float = 0.0
    fill: Literal["zeros", "garbage", "stale"] = "zeros"


@dataclass(frozen=True, slots=True)
class _Change:
    """A write or cut that waits in the cache; ``doomed``: a flush of it failed, no later one will try again."""

    at: int
    change: Written | Truncated
    doomed: bool = False


@dataclass(slots=True)
class _File:
    base: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list)

    def copy(self) -> _File:
        return _File(bytearray(self.base), list(self.changes))

    def settle(self, begun: int) -> None:
        """A flush that began then has ended: what came before it is durable."""
        self.changes = [
            replace(change, at=_DURABLE) if change.at < begun and not change.doomed else change
            for change in self.changes
        ]
        while self.changes and self.changes[0].at == _DURABLE:
            _apply(self.base, self.changes.pop(0).change)

    def doom(self) -> None:
        self.changes = [change if change.at == _DURABLE else replace(change, doomed=True) for change in self.changes]

    def forget(self) -> None:
        self.changes = [change for change in self.changes if not change.doomed]

    def cached(self) -> bytes:
        """What a process reads."""
        content = bytearray(self.base)
        for change in self.changes:
            _apply(content, change.change)
        return bytes(content)


@dataclass(frozen=True, slots=True)
class _NameChange:
    """A name made (``inode``) or removed (None), not yet durable."""

    at: int
    directory: str
    name: str
    inode: int | None


class Disk:
    """Applies events in order; can say at any time what a crash might leave."""

    def __init__(self) -> None:
        self.files: dict[int, _File] = {}
        self.directories: dict[str, int] = {}
        self._names: dict[tuple[str, str], int] = {}
        self._name_changes: list[_NameChange] = []
        self._replacing: dict[tuple[str, str], bytes] = {}

    @classmethod
    def holding(cls, image: Image) -> Disk:
        """A disk with this on it, all durable."""
        disk = cls()
        for directory, files in image.items():
            disk.directories[directory] = _DURABLE
            for name, content in files.items():
                inode = len(disk.files) + 1
                disk.files[inode] = _File(bytearray(content))
                disk._names[directory, name] = inode
        return disk

    def copy(self) -> Disk:
        """The same, to go another way from here."""
        disk = Disk()
        disk.files = {inode: file.copy() for inode, file in self.files.items()}
        disk.directories = dict(self.directories)
        disk._names = dict(self._names)
        disk._name_changes = list(self._name_changes)
        disk._replacing = dict(self._replacing)
        return disk

    def after_kill(self) -> Disk:
        """The same with its log over: the process died, the page cache lives on."""
        disk = self.copy()
        for file in disk.files.values():
            file.changes = [
                change if change.at == _DURABLE else replace(change, at=_EARLIER) for change in file.changes
            ]
        disk.directories = {path: min(at, _EARLIER) for path, at in self.directories.items()}
        disk._name_changes = [replace(change, at=_EARLIER) for change in self._name_changes]
        disk._replacing = {}
        return disk

    # -- the log ---------------------------------------------------------------------------------

    def apply(self, at: int, event: Event) -> None:
        """Take in the next event, at this position of the log."""
        match event:
            case Written(inode) | Truncated(inode):
                self.files[inode].changes.append(_Change(at, event))
            case Synced(int() as inode, begun):
                self.files[inode].settle(begun)
            case SyncFailed(inode):
                self.files[inode].doom()
            case CacheDropped(inode):
                self.files[inode].forget()
            case Rotted(inode, offset, value):
                self.files[inode].changes.append(_Change(_DURABLE, Written(inode, offset, bytes([value]))))
                self.files[inode].settle(_EARLIER)
            case _:
                self._apply_to_names(at, event)

    def _apply_to_names(self, at: int, event: Event) -> None:
        match event:
            case Created(directory, name, inode):
                self.files[inode] = _File()
                self._name_changes.append(_NameChange(at, directory, name, inode))
            case Removed(directory, name):
                self._name_changes.append(_NameChange(at, directory, name, None))
            case Synced(str() as directory, begun):
                self._settle_names(directory, begun)
            case WholeBegun(directory, name, content):
                self._replacing[directory, name] = content
            case WholeWritten(directory, name, content, inode):
                del self._replacing[directory, name]
                self.files[inode] = _File(bytearray(content))
                self._names[directory, name] = inode
                self._settle_names(directory, at)
            case DirectoryMade(directory, durable):
                if directory != ".":
                    self.directories[directory] = _DURABLE if durable else at
            case Lost(directory):
                self._lose(directory)
            case _:
                pass

    def _settle_names(self, directory: str, begun: int) -> None:
        waiting = []
        for change in self._name_changes:
            if change.directory == directory and change.at < begun:
                _rename(self._names, change)
            else:
                waiting.append(change)
        self._name_changes = waiting
        for path, made in self.directories.items():
            if _parent(path) == directory and made < begun:
                self.directories[path] = _DURABLE

    def _lose(self, directory: str) -> None:
        self._names = {place: inode for place, inode in self._names.items() if place[0] != directory}
        self._name_changes = [change for change in self._name_changes if change.directory != directory]
        self._replacing = {place: new for place, new in self._replacing.items() if place[0] != directory}
        self.directories.pop(directory, None)

    # -- what is there ---------------------------------------------------------------------------

    def seen_names(self) -> dict[tuple[str, str], int]:
        """(Directory, name) → inode as a process sees them."""
        names = dict(self._names)
        for change in self._name_changes:
            _rename(names, change)
        return names

    def cached(self) -> Image:
        """What a process sees; also what is left when it is killed."""
        image: Image = {directory: {} for directory in self.directories}
        for (directory, name), inode in self.seen_names().items():
            image[directory][name] = self.files[inode].cached()
        return image

    def after_power_loss(self, loss: PowerLoss, rng: Random) -> Image:
        """One of the states a power cut may leave."""
        image: Image = {}
        for directory, made in sorted(self.directories.items()):
            above = _parent(directory)
            if (above in image or above == ".") and (made == _DURABLE or rng.random() < loss.survive):
                image[directory] = {}
        names = dict(self._names)
        for change in self._name_changes:
            if rng.random() < loss.survive:
                _rename(names, change)
        for (directory, name), inode in sorted(names.items()):
            if directory in image:
                image[directory][name] = self._left_of(inode, directory, loss, rng)
        self._half_replaced(image, rng)
        return image

    def _left_of(self, inode: int, directory: str, loss: PowerLoss, rng: Random) -> bytes:
        file = self.files[inode]
        content = bytearray(file.base)
        waiting = False
        for change in file.changes:
            if change.at == _DURABLE:
                _apply(content, change.change)
                continue
            waiting = True
            if rng.random() < loss.survive:
                for piece in _torn(change.change, rng) if rng.random() < loss.tear else [change.change]:
                    self._grow(content, piece, directory, loss, rng)
                    _apply(content, piece)
        if waiting and loss.survive < 1 and rng.random() < 0.5:
            content += self._fill(rng.randrange(_GARBAGE_BYTES_MAX), directory, loss, rng)
        return bytes(content)

    def _grow(
        self, content: bytearray, change: Written | Truncated, directory: str, loss: PowerLoss, rng: Random
    ) -> None:
        if isinstance(change, Written) and change.offset > len(content):
            content += self._fill(change.offset - len(content), directory, loss, rng)

    def _fill(self, length: int, directory: str, loss: PowerLoss, rng: Random) -> bytes:
        if loss.fill == "zeros" or not length:
            return bytes(length)
        if loss.fill == "garbage":
            return rng.randbytes(length)
        # Blocks that another file of the same volume once had, records and all.
        old = b"".join(bytes(self.files[inode].base) for place, inode in self._names.items() if place[0] == directory)
        at = rng.randrange(len(old) + 1)
        return (old[at:] + bytes(length))[:length]

    def _half_replaced(self, image: Image, rng: Random) -> None:
        for (directory, name), content in self._replacing.items():
            if directory not in image:
                continue
            kind = rng.randrange(3)
            if kind == 1:
                image[directory][name + ".new"] = content[: rng.randrange(len(content) + 1)]
            elif kind == 2:
                image[directory][name] = content


def write_image(image: Image, root: Path) -> None:
    """Put an image on the real disk."""
    for directory, files in image.items():
        (root / directory).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (root / directory / name).write_bytes(content)


def _apply(content: bytearray, change: Written | Truncated) -> None:
    if isinstance(change, Written):
        content.extend(bytes(max(0, change.offset - len(content))))
        content[change.offset : change.offset + len(change.data)] = change.data
        return
    del content[change.size :]
    content.extend(bytes(change.size - len(content)))


def _rename(names: dict[tuple[str, str], int], change: _NameChange) -> None:
    if change.inode is None:
        names.pop((change.directory, change.name), None)
    else:
        names[change.directory, change.name] = change.inode


def _torn(change: Written | Truncated, rng: Random) -> list[Written | Truncated]:
    """What arrives of a write that was under way: up to some byte, or some of its sectors."""
    if isinstance(change, Truncated) or not change.data:
        return [change]
    if rng.random() < 0.5:
        return [replace(change, data=change.data[: rng.randrange(len(change.data))])]
    pieces: list[Written | Truncated] = []
    start = 0
    while start < len(change.data):
        stop = min(len(change.data), start + _SECTOR_BYTES - (change.offset + start) % _SECTOR_BYTES)
        if rng.random() < 0.5:
            pieces.append(replace(change, offset=change.offset + start, data=change.data[start:stop]))
        start = stop
    return pieces


def _parent(directory: str) -> str:
    return str(PurePosixPath(directory).parent)

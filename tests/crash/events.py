"""What a volume asks of a file system, and what befalls it, as entries of a log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DirectoryMade:
    """A directory is there; ``durable``: so is its name in the directory above."""

    directory: str
    durable: bool


@dataclass(frozen=True, slots=True)
class Created:
    directory: str
    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class Written:
    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncated:
    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class SyncBegun:
    """A flush of a file (``inode``) or of a directory has started; what is asked for later is not part of it."""

    target: int | str


@dataclass(frozen=True, slots=True)
class Synced:
    """The flush that began at position ``begun`` of the log has ended well."""

    target: int | str
    begun: int


@dataclass(frozen=True, slots=True)
class SyncFailed:
    """The kernel could not write: what was dirty is in its cache only, and counts as clean there."""

    inode: int


@dataclass(frozen=True, slots=True)
class CacheDropped:
    """What the kernel counted as clean has been let go of, and is read from the disk again."""

    inode: int


@dataclass(frozen=True, slots=True)
class Removed:
    directory: str
    name: str


@dataclass(frozen=True, slots=True)
class WholeBegun:
    """A small file is being replaced atomically; it may be the old or the new one from here on."""

    directory: str
    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class WholeWritten:
    directory: str
    name: str
    content: bytes
    inode: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The disk under a directory is gone."""

    directory: str


@dataclass(frozen=True, slots=True)
class Rotted:
    """A byte of a file has changed on the platter."""

    inode: int
    offset: int
    value: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Something the workload did, among what the disk was asked for."""

    text: str


Event = (
    DirectoryMade
    | Created
    | Written
    | Truncated
    | SyncBegun
    | Synced
    | SyncFailed
    | CacheDropped
    | Removed
    | WholeBegun
    | WholeWritten
    | Lost
    | Rotted
    | Mark
)

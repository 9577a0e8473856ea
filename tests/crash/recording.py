"""A file system that writes down, in order, everything the volumes of a store ask of it.

What is durable follows from this log alone (see :mod:`tests.crash.disk`), so nothing is really flushed.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Literal, get_args
from weakref import WeakValueDictionary

from storage.limits import BytesLike
from storage.shards.filesystem import LocalFile, LocalFileSystem, Space, VolumeFile
from storage.shards.identity import SEGMENT_SUFFIX
from storage.system.lmdb_env import Environment
from tests.crash.disk import Disk
from tests.crash.events import (
    CacheDropped,
    Created,
    DirectoryMade,
    Event,
    Lost,
    Mark,
    Removed,
    Rotted,
    SyncBegun,
    Synced,
    SyncFailed,
    Truncated,
    WholeBegun,
    WholeWritten,
    Written,
)

Watcher = Callable[[int, Event], None]
"""Called after an event was written down and done, with its position in the log; other threads wait meanwhile."""


class RecordingFileSystem:
    """Implements ``storage.shards.filesystem.FileSystem`` on real files below ``root``.

    Args:
        root: the store directory.
        disk: what is there already, as the model knows it.
        watch: told of every event.
        together: give files descriptors, so that the engine flushes them by its flusher; that must be ``handles``.
        flush_s: how long a flush takes, so that others get to do something meanwhile.
    """

    def __init__(
        self,
        root: Path,
        disk: Disk | None = None,
        watch: Watcher = lambda at, event: None,
        *,
        together: bool = False,
        flush_s: float = 0.0,
    ) -> None:
        self.root = root
        self.log: list[Event] = []
        self.lock = threading.RLock()
        self.watch = watch
        self.together = together
        self.flush_s = flush_s
        self.handles = Handles()
        self.faults = Faults()
        self._real = LocalFileSystem()
        disk = disk or Disk()
        self._disk = disk.copy()
        self._applied = 0
        self._directories = {".", *disk.directories}
        self._inodes = disk.seen_names()
        self._next_inode = max(disk.files, default=0) + 1

    # -- the port --------------------------------------------------------------------------------

    def create(self, path: Path) -> VolumeFile:
        with self.lock:
            self.faults.check(self.relative(path.parent), "create")
            file = self._real.create(path)
            directory = self._enter(path.parent)
            inode = self._new_inode(directory, path.name)
            self._note(Created(directory, path.name, inode))
            return RecordedFile(self, file, inode, directory)

    def open(self, path: Path, *, writable: bool) -> VolumeFile:
        with self.lock:
            directory = self._enter(path.parent)
            self.faults.check(directory, "open")
            file = self._real.open(path, writable=writable)
            return RecordedFile(self, file, self._inodes[directory, path.name], directory)

    def write_whole(self, path: Path, content: bytes) -> None:
        with self.lock:
            directory = self._enter(path.parent)
            self.faults.check(directory, "write")
            self._note(WholeBegun(directory, path.name, content))
            path.write_bytes(content)
            self._note(WholeWritten(directory, path.name, content, self._new_inode(directory, path.name)))

    def remove(self, path: Path) -> None:
        with self.lock:
            directory = self._enter(path.parent)
            self.faults.check(directory, "remove")
            self._real.remove(path)
            self._inodes.pop((directory, path.name), None)
            self._note(Removed(directory, path.name))

    def sync_directory(self, path: Path) -> None:
        with self.lock:
            path.stat()
            directory = self.relative(path)
            begun = self._note(SyncBegun(directory))
            self.faults.check(directory, "sync_directory")
        with self.lock:
            self._note(Synced(directory, begun))

    def make_directory(self, path: Path) -> None:
        with self.lock:
            path.mkdir(parents=True, exist_ok=True)
            directory = self._enter(path)
            for made in (directory, *map(str, PurePosixPath(directory).parents)):
                self._note(DirectoryMade(made, durable=True))

    def names(self, path: Path) -> list[str]:
        return self._real.names(path)

    def read_whole(self, path: Path) -> bytes:
        return self._real.read_whole(path)

    def space(self, path: Path) -> Space:
        return self._real.space(path)

    def database(self, path: Path, databases: tuple[str, ...]) -> Environment:
        return self._real.database(path, databases)

    def remove_tree(self, path: Path) -> None:
        self._real.remove_tree(path)

    def drop_cache(self, inode: int) -> None:
        """What a failed flush left in the cache is gone from it."""
        with self.lock:
            self._note(CacheDropped(inode))
            if not any(isinstance(event, SyncFailed) for event in self.log):
                return
            for at in range(self._applied, len(self.log)):
                self._disk.apply(at, self.log[at])
            self._applied = len(self.log)
            directory, name = next(place for place, known in self._inodes.items() if known == inode)
            with (self.root / directory / name).open("r+b") as stream:
                stream.truncate(stream.write(self._disk.files[inode].cached()))

    # -- for the workload ------------------------------------------------------------------------

    def mark(self, text: str) -> None:
        """Write down that something happened outside."""
        with self.lock:
            self._note(Mark(text))

    def lose(self, path: Path) -> None:
        """Take a directory away under its user."""
        with self.lock:
            directory = self._enter(path)
            shutil.rmtree(path)
            self._directories.discard(directory)
            self._inodes = {place: inode for place, inode in self._inodes.items() if place[0] != directory}
            self._note(Lost(directory))

    def rot(self, path: Path, offset: int) -> None:
        """Change one byte of a file that is wholly durable."""
        with self.lock:
            inode = self._inodes[self._enter(path.parent), path.name]
            with path.open("r+b") as stream:
                stream.seek(offset)
                value = stream.read(1)[0] ^ 0x55
                stream.seek(offset)
                stream.write(bytes([value]))
            self._note(Rotted(inode, offset, value))

    def segments(self) -> list[Path]:
        """Every segment file there is, by name."""
        return sorted(self.root / place / name for place, name in self._inodes if name.endswith(SEGMENT_SUFFIX))

    def relative(self, path: Path) -> str:
        """A directory's name from the root on; the root is ``.``."""
        return str(path.relative_to(self.root))

    # -- writing down ----------------------------------------------------------------------------

    def _note(self, event: Event) -> int:
        at = len(self.log)
        self.log.append(event)
        self.watch(at, event)
        return at

    def _new_inode(self, directory: str, name: str) -> int:
        inode, self._next_inode = self._next_inode, self._next_inode + 1
        self._inodes[directory, name] = inode
        return inode

    def _enter(self, path: Path) -> str:
        """Notice directories that were made meanwhile."""
        directory = self.relative(path)
        if directory not in self._directories:
            self._enter(path.parent)
            self._directories.add(directory)
            self._note(DirectoryMade(directory, durable=False))
        return directory


Asked = Literal["create", "open", "write", "read", "datasync", "truncate", "remove", "sync_directory"]
ASKED: tuple[Asked, ...] = get_args(Asked)


class Faults:
    """What fails with EIO, of what is asked of which directory."""

    def __init__(self) -> None:
        self._broken: set[tuple[str, Asked]] = set()

    def start(self, directory: str, *asked: Asked) -> None:
        """From now on these fail."""
        self._broken |= {(directory, what) for what in asked}

    def stop(self) -> None:
        """All is well again."""
        self._broken.clear()

    def get(self, directory: str, asked: Asked) -> OSError | None:
        """The error to raise, if any."""
        if (directory, asked) not in self._broken:
            return None
        return OSError(errno.EIO, os.strerror(errno.EIO), f"{asked} in {directory}")

    def check(self, directory: str, asked: Asked) -> None:
        """Raise the error, if any."""
        error = self.get(directory, asked)
        if error is not None:
            raise error


class Handles:
    """Stand-ins for descriptors, and the flusher (``storage.system.flushing.Flusher``) that takes them."""

    def __init__(self) -> None:
        self._files: WeakValueDictionary[int, RecordedFile] = WeakValueDictionary()
        self._numbers = count(1 << 20)

    def enter(self, file: RecordedFile) -> int:
        number = next(self._numbers)
        self._files[number] = file
        return number

    def flush(self, descriptors: Sequence[int], meanwhile: Callable[[], None] | None = None) -> list[OSError | None]:
        files = [self._files[descriptor] for descriptor in descriptors]
        half = len(files) // 2
        outcomes = [self._flush_one(file) for file in files[:half]]
        if meanwhile is not None:
            meanwhile()
        return outcomes + [self._flush_one(file) for file in files[half:]]

    def _flush_one(self, file: RecordedFile) -> OSError | None:
        try:
            file.datasync()
        except OSError as error:
            return error
        return None

    def close(self) -> None:
        pass


class RecordedFile:
    """A ``VolumeFile`` that writes down what is asked of it."""

    __slots__ = ("__weakref__", "_directory", "_file", "_handle", "_recorder", "inode")

    def __init__(self, recorder: RecordingFileSystem, file: LocalFile, inode: int, directory: str) -> None:
        self._recorder = recorder
        self._file = file
        self._directory = directory
        self._handle = recorder.handles.enter(self)
        self.inode = inode

    def write(self, buffers: Sequence[BytesLike], offset: int) -> None:
        with self._recorder.lock:
            data, fault = b"".join(buffers), self._recorder.faults.get(self._directory, "write")
            data = data[: len(data) // 2] if fault else data
            self._file.write([data], offset)
            self._recorder._note(Written(self.inode, offset, data))
        if fault:
            raise fault

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> int:
        self._recorder.faults.check(self._directory, "read")
        return self._file.read_into(buffers, offset)

    def datasync(self) -> None:
        with self._recorder.lock:
            begun = self._recorder._note(SyncBegun(self.inode))
        if self._recorder.flush_s:
            time.sleep(self._recorder.flush_s)
        fault = self._recorder.faults.get(self._directory, "datasync")
        with self._recorder.lock:
            self._recorder._note(SyncFailed(self.inode) if fault else Synced(self.inode, begun))
        if fault:
            raise fault

    def descriptor(self) -> int:
        return self._handle if self._recorder.together else -1

    def drop_cache(self) -> None:
        self._recorder.drop_cache(self.inode)

    def truncate(self, size: int) -> None:
        with self._recorder.lock:
            self._recorder.faults.check(self._directory, "truncate")
            self._file.truncate(size)
            self._recorder._note(Truncated(self.inode, size))

    def size(self) -> int:
        return self._file.size()

    def removed(self) -> bool:
        return self._file.removed()

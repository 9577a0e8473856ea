"""A file system that writes down, in order, everything the volumes of a store ask of it.

What is durable follows from this log alone (see :mod:`tests.crash.disk`), so nothing is really flushed.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from weakref import WeakValueDictionary

from storage.limits import BytesLike
from storage.shards.filesystem import LocalFile, LocalFileSystem, VolumeFile
from storage.shards.identity import SEGMENT_SUFFIX
from tests.crash.disk import Disk
from tests.crash.events import (
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
    """

    def __init__(
        self,
        root: Path,
        disk: Disk | None = None,
        watch: Watcher = lambda at, event: None,
        *,
        together: bool = False,
    ) -> None:
        self.root = root
        self.log: list[Event] = []
        self.lock = threading.RLock()
        self.watch = watch
        self.together = together
        self.handles = Handles()
        self._real = LocalFileSystem()
        disk = disk or Disk()
        self._directories = set(disk.directories)
        self._inodes = disk.seen_names()
        self._next_inode = max(disk.files, default=0) + 1

    # -- the port --------------------------------------------------------------------------------

    def create(self, path: Path) -> VolumeFile:
        with self.lock:
            file = self._real.create(path)
            directory = self._enter(path.parent)
            inode = self._new_inode(directory, path.name)
            self._note(Created(directory, path.name, inode))
            return RecordedFile(self, file, inode)

    def open(self, path: Path, *, writable: bool) -> VolumeFile:
        with self.lock:
            file = self._real.open(path, writable=writable)
            return RecordedFile(self, file, self._inodes[self._enter(path.parent), path.name])

    def write_whole(self, path: Path, content: bytes) -> None:
        with self.lock:
            directory = self._enter(path.parent)
            self._note(WholeBegun(directory, path.name, content))
            path.write_bytes(content)
            self._note(WholeWritten(directory, path.name, content, self._new_inode(directory, path.name)))

    def remove(self, path: Path) -> None:
        with self.lock:
            self._real.remove(path)
            directory = self._enter(path.parent)
            self._inodes.pop((directory, path.name), None)
            self._note(Removed(directory, path.name))

    def sync_directory(self, path: Path) -> None:
        with self.lock:
            path.stat()
            directory = self.relative(path)
            begun = self._note(SyncBegun(directory))
        with self.lock:
            self._note(Synced(directory, begun))

    def make_directory(self, path: Path) -> None:
        with self.lock:
            path.mkdir(parents=True, exist_ok=True)
            self._enter(path, durable=True)

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

    def _enter(self, path: Path, *, durable: bool = False) -> str:
        """Notice directories that were made without asking."""
        directory = self.relative(path)
        if directory != "." and directory not in self._directories:
            self._enter(path.parent, durable=durable)
            self._directories.add(directory)
            self._note(DirectoryMade(directory, durable))
        return directory


class Handles:
    """Stand-ins for descriptors, and the flusher (``storage.flushing.Flusher``) that takes them."""

    def __init__(self) -> None:
        self._files: WeakValueDictionary[int, RecordedFile] = WeakValueDictionary()
        self._numbers = count(1 << 20)

    def enter(self, file: RecordedFile) -> int:
        number = next(self._numbers)
        self._files[number] = file
        return number

    def flush(self, descriptors: Sequence[int], meanwhile: Callable[[], None] | None = None) -> list[OSError | None]:
        if meanwhile is not None:
            meanwhile()
        return [self._flush_one(self._files[descriptor]) for descriptor in descriptors]

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

    __slots__ = ("__weakref__", "_file", "_handle", "_recorder", "inode")

    def __init__(self, recorder: RecordingFileSystem, file: LocalFile, inode: int) -> None:
        self._recorder = recorder
        self._file = file
        self._handle = recorder.handles.enter(self)
        self.inode = inode

    def write(self, buffers: Sequence[BytesLike], offset: int) -> None:
        with self._recorder.lock:
            self._file.write(buffers, offset)
            self._recorder._note(Written(self.inode, offset, b"".join(buffers)))

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> int:
        return self._file.read_into(buffers, offset)

    def datasync(self) -> None:
        with self._recorder.lock:
            begun = self._recorder._note(SyncBegun(self.inode))
        with self._recorder.lock:
            self._recorder._note(Synced(self.inode, begun))

    def descriptor(self) -> int:
        return self._handle if self._recorder.together else -1

    def fail_sync(self) -> None:
        """A flush that the disk did not take."""
        with self._recorder.lock:
            self._recorder._note(SyncBegun(self.inode))
            self._recorder._note(SyncFailed(self.inode))

    def truncate(self, size: int) -> None:
        with self._recorder.lock:
            self._file.truncate(size)
            self._recorder._note(Truncated(self.inode, size))

    def size(self) -> int:
        return self._file.size()

    def removed(self) -> bool:
        return self._file.removed()

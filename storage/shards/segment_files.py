"""The segment files of a volume: their names, and open files for reading."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from cachetools import LRUCache

from storage.shards.condition import Condition
from storage.shards.filesystem import FileSystem, VolumeFile
from storage.shards.identity import IDENTITY_FILE, SEGMENT_SUFFIX, read_segment_header
from storage.shards.record import SegmentHeader
from storage.system.descriptors import descriptor_limit

# Open files per volume, each for readers and for a sync: those of six volumes fit into the usual 1,024 descriptors.
_OPEN_FILES_MIN, _OPEN_FILES_MAX = 4, 64
_LIMIT_PER_OPEN_FILE = 16


class SegmentFiles:
    """Opens segments and reads from them. Thread-safe; its lock is held while a segment is opened.

    Unless they say otherwise, methods raise the disk's OSError, and the caller decides what it means.

    Args:
        directory: directory of the volume.
        filesystem: access to the disk.
        condition: makes the error for a failed read.
    """

    def __init__(self, directory: Path, filesystem: FileSystem, condition: Condition) -> None:
        self.directory = directory
        self._filesystem = filesystem
        self._condition = condition
        self._open: LRUCache[int, VolumeFile] = LRUCache(open_files_max())
        self._lock = threading.Lock()

    def path_of(self, number: int) -> Path:
        """Return the path of a segment's file."""
        return self.directory / f"{number:08d}{SEGMENT_SUFFIX}"

    def numbers(self) -> list[int]:
        """Return the numbers of the segments in the directory, ascending."""
        names = self._filesystem.names(self.directory)
        stems = [name.removesuffix(SEGMENT_SUFFIX) for name in names if name.endswith(SEGMENT_SUFFIX)]
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    def open(self, number: int, *, writable: bool = False) -> VolumeFile:
        """Open a segment's file, without the cache of open files."""
        return self._filesystem.open(self.path_of(number), writable=writable)

    def header(self, number: int) -> SegmentHeader | None:
        """Read a segment's first block; return None if it is damaged or missing."""
        return read_segment_header(self.path_of(number), self._filesystem)

    def create(self, number: int) -> VolumeFile:
        """Create a segment's file. Raises StoreFull, or FileExistsError if it exists."""
        return self._filesystem.create(self.path_of(number))

    def remove(self, number: int) -> None:
        """Remove a segment's name."""
        self._filesystem.remove(self.path_of(number))

    def sync_directory(self) -> None:
        """Make created and removed names durable."""
        self._filesystem.sync_directory(self.directory)

    # -- open files ------------------------------------------------------------------------------

    def file(self, number: int) -> VolumeFile | None:
        """Return an open segment; None if the directory exists but the segment does not.

        Raises:
            VolumeUnavailable: it cannot be opened now.
        """
        with self._lock:
            file = self._open.get(number)
            if file is None:
                try:
                    file = self.open(number)
                except FileNotFoundError as error:
                    if self._is_gone(number):
                        return None
                    raise self._condition.unreadable(error) from error
                except OSError as error:
                    raise self._condition.unreadable(error) from error
                self._open[number] = file
            return file

    def _is_gone(self, number: int) -> bool:
        """Whether the directory is that of this volume and has no such segment, by a single listing.

        A disk that has dropped out leaves an empty directory, or none.
        """
        try:
            names = self._filesystem.names(self.directory)
        except OSError:
            return False
        return IDENTITY_FILE in names and self.path_of(number).name not in names

    def keep(self, number: int, file: VolumeFile) -> None:
        """Let readers use a file that was opened for writing."""
        with self._lock:
            self._open[number] = file

    def let_go(self, number: int) -> None:
        """Remove a segment from the open files."""
        with self._lock:
            self._open.pop(number, None)

    def clear(self) -> None:
        """Remove all segments from the open files, so that the next reads open them again."""
        with self._lock:
            self._open.clear()

    # -- reading from them -----------------------------------------------------------------------

    def fill(self, file: VolumeFile, buffers: Sequence[memoryview], length: int, offset: int) -> bool:
        """Read ``length`` bytes from ``offset`` into buffers of this total length; False if the file ends before.

        Raises:
            VolumeUnavailable: the disk cannot read them now.
        """
        try:
            if file.read_into(buffers, offset) == length:
                return True
            # A short read is no error. Only the file's length shows that it is shorter.
            whole = memoryview(bytearray(length))
            done = 0
            while done < length:
                count = file.read_into([whole[done:]], offset + done)
                if count == 0:
                    break
                done += count
            if done < length and file.size() >= offset + length:
                raise OSError(f"a segment ends at byte {offset + done} of {file.size()}")
        except OSError as error:
            raise self._condition.unreadable(error) from error
        at = 0
        for buffer in buffers:
            buffer[:] = whole[at : at + len(buffer)]
            at += len(buffer)
        return done == length

    def length(self, file: VolumeFile) -> int:
        """Return a file's length in bytes.

        Raises:
            VolumeUnavailable: it cannot be read now.
        """
        try:
            return file.size()
        except OSError as error:
            raise self._condition.unreadable(error) from error

    def drop_cache(self, file: VolumeFile) -> None:
        """Make the next reads come from the disk; see :meth:`VolumeFile.drop_cache`.

        Raises:
            VolumeUnavailable: this cannot be done now.
        """
        try:
            file.drop_cache()
        except OSError as error:
            raise self._condition.unreadable(error) from error


def open_files_max() -> int:
    """Return how many segments a volume keeps open for reading, and likewise for a sync."""
    return max(_OPEN_FILES_MIN, min(_OPEN_FILES_MAX, descriptor_limit() // _LIMIT_PER_OPEN_FILE))

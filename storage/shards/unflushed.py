"""Tracks which files of a volume were written but not flushed yet."""

from __future__ import annotations

from storage.shards.filesystem import VolumeFile


class Unflushed:
    """The segment files that the next sync has to flush, and whether it has to flush the directory.

    Guarded by the volume's lock.

    Args:
        files_max: how many files may wait for a sync before some of them are flushed earlier, as each is kept open.

    Attributes:
        files: files by segment.
        directory: whether names were created or removed.
    """

    def __init__(self, files_max: int) -> None:
        self._files_max = files_max
        self.files: dict[int, VolumeFile] = {}
        self.directory = False

    def __bool__(self) -> bool:
        return bool(self.files) or self.directory

    @property
    def is_full(self) -> bool:
        """Whether some files must be flushed before further ones are noted."""
        return len(self.files) >= self._files_max

    def note(self, number: int, file: VolumeFile) -> None:
        """Note that a segment was written or truncated."""
        self.files[number] = file

    def forget(self, number: int) -> None:
        """Forget a segment that is about to be removed."""
        self.files.pop(number, None)

    def take(self) -> tuple[dict[int, VolumeFile], bool]:
        """Remove and return everything, at the start of a sync: the files, and whether the directory."""
        files, directory = self.files, self.directory
        self.clear()
        return files, directory

    def give_back(self, files: dict[int, VolumeFile], directory: bool) -> None:
        """Add back what a cancelled sync had taken."""
        self.files = {**files, **self.files}
        self.directory = self.directory or directory

    def clear(self) -> None:
        """Forget everything, as it was flushed or given up."""
        self.files, self.directory = {}, False

"""What of a volume was written and not flushed yet."""

from __future__ import annotations

from storage.shards.filesystem import VolumeFile


class Unflushed:
    """Segment files, and whether the directory, that the next sync has to flush. Guarded by the volume's lock.

    Attributes:
        files: files by segment.
        directory: names were created or removed.
    """

    def __init__(self) -> None:
        self.files: dict[int, VolumeFile] = {}
        self.directory = False

    def __bool__(self) -> bool:
        return bool(self.files) or self.directory

    def note(self, number: int, file: VolumeFile) -> None:
        """A segment was written to, or cut."""
        self.files[number] = file

    def forget(self, number: int) -> None:
        """A segment is about to be removed."""
        self.files.pop(number, None)

    def take(self) -> tuple[dict[int, VolumeFile], bool]:
        """All of it, for a sync that is begun: files and whether the directory."""
        files, directory = self.files, self.directory
        self.clear()
        return files, directory

    def give_back(self, files: dict[int, VolumeFile], directory: bool) -> None:
        """That sync was not gone through with."""
        self.files = {**files, **self.files}
        self.directory = self.directory or directory

    def clear(self) -> None:
        """All of it is flushed, or given up."""
        self.files, self.directory = {}, False

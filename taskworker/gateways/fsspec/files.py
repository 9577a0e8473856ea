"""The port between the filesystem and what stores the files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from storage import DeleteOutcome, GetOutcome, PushOutcome, Version

Progress = Callable[[int, int], None]
Content = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""What is pushed. Text is the path of a local file."""

STREAMED_BYTES_MIN = 64 * 1024
"""Smaller files are copied by reading and writing them, which takes no more calls than having the store do it."""


class Files(Protocol):
    """The files of one user. Thread-safe. All methods raise errors of the operating system."""

    def find(self, name: str) -> Version | None:
        """The head of the file with this name."""

    def stat(self, version: Version, version_id: str) -> Version:
        """Another version of the same file."""

    def history(self, version: Version) -> list[Version]:
        """All versions of the same file, newest first."""

    def page(self, prefix: str, after: str | None, limit: int) -> list[Version]:
        """Heads of at most ``limit`` files whose names start with ``prefix``, by name, after ``after``."""

    def read(self, version: Version, offset: int, length: int) -> bytes:
        """Bytes of a version; fewer if it ends before."""

    def download(self, version: Version, target: Path | BinaryIO, progress: Progress | None) -> None:
        """Write a version to a file, or to a path, which is replaced as a whole."""

    def push(self, name: str, content: Content, progress: Progress | None = None) -> Version:
        """Store a file, as a whole or not at all."""

    def append(self, version: Version, more: BinaryIO) -> Version:
        """Add all that ``more`` has to a file, of which this version must still be the head."""

    def copy(self, version: Version, name: str) -> Version:
        """Store the content of a version under another name; its bytes do not come here, if the store can do that."""

    def push_many(self, files: Iterable[tuple[str, Content]]) -> list[PushOutcome]:
        """Store many files."""

    def get_many(self, names: Sequence[str], bytes_max: int | None = None) -> list[GetOutcome]:
        """Read many files by name; larger ones come without data."""

    def delete_many(self, file_ids: Sequence[str]) -> list[DeleteOutcome]:
        """Delete many files by id."""

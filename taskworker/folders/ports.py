"""The port between folders and what keeps files: one user's files, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol

from storage import DeleteOutcome, GetOutcome, PushOutcome, Version

Content = bytes | BinaryIO


class Files(Protocol):
    """The files of one user. Methods raise errors of ``storage``."""

    def find(self, name: str) -> Version | None:
        """The head of the file with this name."""

    def version(self, file_id: str, version_id: str) -> Version:
        """A version of a file."""

    def heads(self, prefix: str) -> Iterator[Version]:
        """Heads of all files whose names start with this, read lazily."""

    def push(self, name: str, content: Content) -> Version:
        """Store content under a name."""

    def push_after(self, name: str, content: Content, head: str | None) -> Version:
        """Store content under a name as the version after ``head``; None: as the first version of a new file.

        Raises:
            ConflictError: another version is the head, or there is a file.
            FileNotFound: there is no file of which ``head`` could be a version.
        """

    def push_many(self, files: Iterable[tuple[str, Content]]) -> Iterator[PushOutcome]:
        """Store many files, which may be taken from another thread; yields the outcome of each, in order."""

    def get_many(self, files: Iterable[str], *, by_name: bool = False, bytes_max: int) -> Iterator[GetOutcome]:
        """Read files by id or name, in order; those larger than ``bytes_max`` come without data."""

    def read(self, version: Version, start: int, stop: int) -> bytes:
        """The verified bytes from ``start`` up to ``stop``."""

    def opened(self, version: Version) -> BinaryIO:
        """A version as a file to read from, which the caller closes."""

    def delete(self, version: Version) -> None:
        """Delete a file with all its versions, if this is its head.

        Raises:
            ConflictError: another version is the head.
            FileNotFound: the file does not exist any more.
        """

    def delete_many(self, file_ids: Sequence[str]) -> Iterator[DeleteOutcome]:
        """Delete files with all their versions; yields the outcome of each."""

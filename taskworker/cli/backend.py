"""The port between the commands and what stores the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from storage import (
        CollectReport,
        DeleteOutcome,
        ErasureProfile,
        GetOutcome,
        PushOutcome,
        RebuildReport,
        RepairReport,
        ScrubReport,
        StoreStats,
        Version,
    )
    from taskworker.folders.ports import Files

Progress = Callable[[int, int], None]
Source = str | PathLike[str] | BinaryIO
BytesLike = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Delta:
    """The changes from a version to the head: pieces of the head's bytes, by offset."""

    head: Version
    pieces: Iterator[tuple[int, BytesLike]]


class Backend(Protocol):
    """The files of one user, and the maintenance of their store.

    Methods raise errors of ``storage``, or a ``Failure`` with an exit code.
    """

    def push(
        self,
        source: Source,
        *,
        filename: str,
        profile: ErasureProfile | None = None,
        note: str = "",
        progress: Progress | None = None,
    ) -> Version:
        """Store ``source`` under ``filename``."""

    def find(self, filename: str) -> Version | None:
        """The head of the file with this name."""

    def stat(self, file_id: str, version_id: str | None = None) -> Version:
        """A version of a file, by default the head."""

    def write_to(
        self, target: BinaryIO, version: Version, start: int, stop: int, *, progress: Progress | None = None
    ) -> None:
        """Write the verified bytes ``start`` up to ``stop`` to a file."""

    def same_content(self, version: Version, path: Path) -> bool:
        """Whether a local file has the same content as this version, compared by chunk ids."""

    def revise(
        self,
        base: Version,
        path: Path,
        *,
        note: str = "",
        progress: Progress | None = None,
    ) -> Version:
        """Make the content of ``path`` the head if ``base`` is the current head; sends only what differs."""

    def changes_since(self, file_id: str, version_id: str) -> Delta:
        """The changes from ``version_id`` to the head; the cost grows with the size of the changes.

        If that version was deleted, they are all of the head.
        """

    def history(self, file_id: str) -> Iterator[Version]:
        """All versions of a file, newest first, read lazily."""

    def list_files(self, prefix: str = "") -> Iterator[Version]:
        """Heads of the user's files by name, read lazily."""

    def push_many(
        self, files: Sequence[tuple[str, Path]], *, profile: ErasureProfile | None = None, note: str = ""
    ) -> Iterator[PushOutcome]:
        """Store local files under names; yields the outcome of each as soon as it is durable."""

    def get_many(self, files: Sequence[str], *, by_name: bool = False, bytes_max: int) -> Iterator[GetOutcome]:
        """Read files by id or name; those larger than ``bytes_max`` come without data."""

    def delete_version(self, file_id: str, version_id: str) -> Version | None:
        """Delete one version of a file; returns the head then, None if the file is gone."""

    def delete_many(self, file_ids: Sequence[str]) -> Iterator[DeleteOutcome]:
        """Delete files with all their versions; yields the outcome of each."""

    def stats(self) -> StoreStats:
        """Counts and sizes of the store, and the state of its volumes."""

    def scrub(self, *, progress: Progress | None = None) -> ScrubReport:
        """Verify every stored shard."""

    def repair(self, *, progress: Progress | None = None) -> RepairReport:
        """Rebuild missing and corrupt shards."""

    def collect(self, *, grace_s: float | None = None, progress: Progress | None = None) -> CollectReport:
        """Free the space of objects that no live version reaches."""

    def rebuild(self, *, progress: Progress | None = None) -> RebuildReport:
        """Rebuild a lost catalog from the stored data."""

    def folders(self) -> Files:
        """The same files, as folders need them."""

    def require_key(self) -> None:
        """Explain why a file is not there, if it may be sealed with another key than the user's own ones given.

        Raises:
            KeyRequired: nothing is sealed with these, although other files are sealed.
            FileNotFound: some files are sealed with other keys.
        """

    def close(self) -> None:
        """Close the store or the connection."""

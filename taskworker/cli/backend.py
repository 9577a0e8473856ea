"""The one port between commands and whatever stores the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO, Protocol

from storage import (
    CollectReport,
    ErasureProfile,
    RebuildReport,
    RepairReport,
    ScrubReport,
    StoreStats,
    Version,
)

Progress = Callable[[int, int], None]
Source = str | PathLike[str] | BinaryIO
BytesLike = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Delta:
    """What leads from a version to the head: pieces of the head's bytes, by offset."""

    head: Version
    pieces: Iterator[tuple[int, BytesLike]]


class Backend(Protocol):
    """Files of one user, and the maintenance of the store they are in.

    Errors are those of ``storage``, or a ``Failure`` with its own exit code.
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
        """One version of a file, the head by default."""

    def write_to(
        self, target: BinaryIO, version: Version, start: int, stop: int, *, progress: Progress | None = None
    ) -> None:
        """Write the verified bytes ``start`` up to ``stop`` to a file."""

    def same_content(self, version: Version, path: Path) -> bool:
        """Whether a local file holds just what this version does, as told by its chunk ids."""

    def revise(
        self,
        base: Version,
        path: Path,
        *,
        note: str = "",
        progress: Progress | None = None,
    ) -> Version:
        """Make the content of ``path`` the head iff ``base`` is the head now, sending what differs."""

    def changes_since(self, file_id: str, version_id: str) -> Delta:
        """What leads from ``version_id`` to the head; costs as much as what changed."""

    def history(self, file_id: str) -> Iterator[Version]:
        """All versions of a file, newest first, read as they are asked for."""

    def list_files(self, prefix: str = "") -> Iterator[Version]:
        """Heads of the user's files by name, read as they are asked for."""

    def delete_files(self, file_ids: list[str]) -> None:
        """End files and their versions: all of them, or none if one is not there."""

    def stats(self) -> StoreStats:
        """Counts and sizes of the store, and how its volumes are."""

    def scrub(self, *, progress: Progress | None = None) -> ScrubReport:
        """Verify every stored shard."""

    def repair(self, *, progress: Progress | None = None) -> RepairReport:
        """Make missing and rotten shards anew."""

    def collect(self, *, grace_s: float | None = None, progress: Progress | None = None) -> CollectReport:
        """Free what no live version reaches."""

    def rebuild(self, *, progress: Progress | None = None) -> RebuildReport:
        """Make a lost catalog again from what is stored."""

    def close(self) -> None:
        """Let go of the store or the connection."""

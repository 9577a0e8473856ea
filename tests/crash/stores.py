"""The kinds of store that are simulated, and their states on the real disk."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage
from storage.fleet.volumes import VolumeOptions
from storage.shards.filesystem import FileSystem
from storage.system.flushing import ThreadFlusher
from tests.crash.disk import Image, write_image
from tests.same_disk import as_the_same_disk

CHUNK_BYTES = 65536
DATABASE = "data.mdb"
_META_BYTES = 2 * mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Setting:
    """What kind of store is simulated.

    Attributes:
        profile: of its files, and how many volumes there are.
        segment_bytes_max: of its volumes.
        pending_max: index entries kept in memory.
        little_room: the disk is taken to be nearly full when segments are rewritten.
    """

    profile: ErasureProfile
    segment_bytes_max: int
    pending_max: int
    little_room: bool = False

    @property
    def volume_count(self) -> int:
        return self.profile.n


SETTINGS = (
    Setting(ErasureProfile(2, 4), 256 * 1024, 8192),
    Setting(ErasureProfile(2, 4), 128 * 1024, 24),
    Setting(ErasureProfile(1, 3), 256 * 1024, 12),
    Setting(ErasureProfile(4, 6), 64 * 1024, 8192),
    Setting(ErasureProfile(2, 4), 2 << 20, 60, little_room=True),
)


def open_store(root: Path, setting: Setting, filesystem: FileSystem | None = None) -> FileStorage:
    """Open or create the simulated store in a directory; its volumes are where it is."""
    return FileStorage.open(
        root,
        profile=setting.profile,
        volumes=[root / "volumes" / str(slot) for slot in range(setting.volume_count)],
        chunk_size=CHUNK_BYTES,
        volume_options=VolumeOptions(filesystem=filesystem, segment_bytes_max=setting.segment_bytes_max),
    )


@contextmanager
def plain_flushing() -> Iterator[None]:
    """Inside, stores flush by threads: letting go of the kernel's flushing takes 30 ms a store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.fleet.volumes.new_flusher", ThreadFlusher)
        yield


@contextmanager
def pending_max(entries: int) -> Iterator[None]:
    """Inside, indexes are written to disk that often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.shards.durability.PENDING_MAX", entries)
        yield


@contextmanager
def limits_of(setting: Setting) -> Iterator[None]:
    """Inside, volumes have the limits of a setting."""
    with pending_max(setting.pending_max), pytest.MonkeyPatch.context() as patch:
        if setting.little_room:
            patch.setattr("storage.shards.evacuation._ROOM_KEPT_BYTES", 1 << 60)
            patch.setattr("storage.shards.evacuation._COMPACT_BATCH_BYTES", 50_000)
        yield


def databases(root: Path) -> Image:
    """The LMDB environments as they are on disk: the last committed state, whatever transaction is open.

    LMDB writes to pages that nothing refers to, and then one of two meta pages.
    """
    return {
        str(path.parent.relative_to(root)): {DATABASE: _between_commits(path)}
        for path in sorted([*root.glob(f"*/{DATABASE}"), *root.glob(f"*/*/index/{DATABASE}")])
    }


def _between_commits(path: Path) -> bytes:
    while True:
        with path.open("rb") as stream:
            before = stream.read(_META_BYTES)
            content = before + stream.read()
            stream.seek(0)
            if stream.read(_META_BYTES) == before:
                return content


def write_state(image: Image, stored: Image, root: Path, *, keep_index: bool = True) -> None:
    """Put a crash state on the real disk. An index may be lost: it can be made again from the segments."""
    write_image(image, root)
    for directory, files in stored.items():
        is_index = directory.endswith("/index")
        if not is_index or (keep_index and str(Path(directory).parent) in image):
            write_image({directory: files}, root)
    as_the_same_disk(root)

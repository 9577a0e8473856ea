"""Opens the parts of a store in a directory: its lock, catalog, settings and volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.catalog import LmdbCatalog, StoreSettings
from storage.erasure import ErasureProfile
from storage.errors import InvalidArgument
from storage.fleet.volumes import VolumeOptions, VolumeSet
from storage.runtime import Runtime
from storage.settings import keep_settings, load_or_create_settings, looks_like_store
from storage.system.locking import StoreLock
from storage.system.private_paths import make_root_directory


@dataclass(frozen=True, slots=True)
class OpenedParts:
    """The opened parts of a store.

    Attributes:
        root: the store directory.
        settings: the settings of the store.
        catalog: the open catalog; empty if the store ``needs_rebuild``.
        volumes: the volumes, open except those that are away.
        lock: the lock on the directory, held.
        needs_rebuild: whether the catalog is gone and must be rebuilt from the volumes.
    """

    root: Path
    settings: StoreSettings
    catalog: LmdbCatalog
    volumes: VolumeSet
    lock: StoreLock
    needs_rebuild: bool


@contextmanager
def opened_parts(
    root: Path,
    *,
    profile: ErasureProfile | None,
    volumes: Sequence[Path] | None,
    chunk_size: int | None,
    create: bool,
    options: VolumeOptions,
    runtime: Runtime,
) -> Iterator[OpenedParts]:
    """Open the parts of the store in ``root``, creating them if there are none; close them if the block raises.

    Arguments and errors are those of :meth:`storage.FileStorage.open`.
    """
    if not create and not looks_like_store(root, volumes):
        raise InvalidArgument(f"there is no store at {root}")
    make_root_directory(root)
    lock = StoreLock(root)
    opened: list[LmdbCatalog | VolumeSet] = []
    try:
        catalog = LmdbCatalog(root / "catalog", runtime.monotonic_s)
        opened.append(catalog)
        found = load_or_create_settings(
            root, catalog, profile=profile, volumes=volumes, chunk_size=chunk_size, create=create
        )
        volume_set = VolumeSet(root, found.settings, options, runtime.monotonic_s, runtime.wall_ms)
        volume_set.open_all(
            expect_data=not found.created,
            is_in_use=lambda: found.needs_rebuild or catalog.counters().files > 0,
        )
        opened.append(volume_set)
        if found.relocated and not volume_set.vacant:
            keep_settings(root, catalog, found.settings)
        yield OpenedParts(root, found.settings, catalog, volume_set, lock, found.needs_rebuild)
    except BaseException:
        for part in reversed(opened):
            part.close()
        lock.release()
        raise

"""Statistics of a store: its contents, its volumes, and how many losses it survives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.catalog import Catalog, ProfileCount, StoreSettings
from storage.erasure import ErasureProfile, accelerator_name, profile_for
from storage.fleet.fleet import Fleet
from storage.reports import StoreStats, VolumeStats
from storage.shards import VolumeUsage


class Figures:
    """The statistics of one store. Holds no state of its own; thread-safe.

    Args:
        catalog: the store's catalog.
        volumes: the store's volumes.
        settings: the store's settings.
    """

    def __init__(self, catalog: Catalog, volumes: Fleet[Any], settings: StoreSettings) -> None:
        self._catalog = catalog
        self._volumes = volumes
        self._settings = settings
        self._profile = ErasureProfile(settings.k, settings.n)

    def profiles(self) -> list[ProfileCount]:
        """The erasure profiles in use, and that of metadata; if there are no files, the store's own profile alone."""
        used = self._catalog.profiles()
        if not used:
            return [ProfileCount(self._profile.k, self._profile.n, 0, 0)]
        return [*used, ProfileCount(1, self._settings.n, 0, 0)]  # metadata: files cannot be read without it

    def survivable(self, losses: Callable[[ErasureProfile], int]) -> int:
        """How many losses all files survive; ``losses`` says how many files of one profile survive."""
        return min(losses(profile_for(one.k, one.n)) for one in self.profiles())

    def stats(self, *, behind: bool, unfinished: str, needs_rebuild: bool) -> StoreStats:
        """Statistics of the store and its volumes; cheap at any size.

        Args:
            behind: whether the catalog is older than the volumes.
            unfinished: what the latest rebuild could not examine.
            needs_rebuild: whether the catalog is gone.
        """
        counters = self._catalog.counters()
        volumes = [self._of_volume(slot) for slot in self._volumes.slots]
        survivable = self.survivable(self._volumes.losses_survivable)
        return StoreStats(
            store_id=self._settings.store_id,
            files=counters.files,
            versions=counters.versions,
            logical_bytes=counters.logical_bytes,
            stored_bytes=sum(volume.bytes_used for volume in volumes),
            profile=self._profile,
            accelerator=accelerator_name(self._profile),
            volumes=volumes,
            losses_survivable=min(0, survivable) if behind else survivable,
            recent_damage=list(self._volumes.recent_damage),
            needs_rebuild=needs_rebuild,
            behind=behind,
            unfinished=unfinished,
        )

    def _of_volume(self, slot: int) -> VolumeStats:
        volume = self._volumes.volume(slot)
        path, usage = Path(self._volumes.place(slot)), VolumeUsage(0, 0, 0, 0, 0)
        if volume is not None:
            with self._volumes.guard(slot, volume):
                usage = volume.usage()
        state = self._volumes.state(slot)
        return VolumeStats(
            slot,
            path,
            state,
            usage.segments,
            usage.bytes_used,
            usage.bytes_live,
            usage.bytes_free,
            usage.shards,
            self._volumes.reason(slot),
            self._volumes.takes_no_writes(slot),
        )

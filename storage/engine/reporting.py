"""What a store tells about itself: its state, its totals, and the progress of healing."""

from __future__ import annotations

from collections.abc import Callable

from storage.arguments import checked
from storage.catalog import Counters, ProfileCount
from storage.engine.concatenating import ConcatenatingStore
from storage.erasure import ErasureProfile, accelerator_name
from storage.maintenance.heal import Pace
from storage.reports import CacheUse, HealingState, StoreStats


class ReportingStore(ConcatenatingStore):
    """The half of a store that tells about it."""

    @property
    def needs_rebuild(self) -> bool:
        """Whether the catalog is gone; only :meth:`rebuild`, :meth:`stats` and :meth:`close` work then."""
        return self._parts.needs_rebuild

    @property
    def behind(self) -> bool:
        """Whether the catalog is older than the volumes, for instance because it was restored from a backup.

        Files can still be read, but nothing is written or freed until a :meth:`rebuild` has added what the catalog
        lacks.
        """
        return self._parts.lineage.behind

    @property
    def unfinished(self) -> str:
        """What the latest rebuild could not examine, and what to do about it; empty if it finished."""
        return self._parts.lineage.unfinished

    def counts(self) -> Counters:
        """The numbers of files and versions, and their bytes, from the catalog alone."""
        self._parts.check_usable()
        return self._parts.catalog.counters()

    def profiles(self) -> list[ProfileCount]:
        """The erasure profiles in use; if there are no files, the store's own profile.

        Metadata counts as a separate profile, since files cannot be read without it.
        """
        self._parts.check_usable()
        return self._parts.figures.profiles()

    def survivable(self, losses: Callable[[ErasureProfile], int], *, verified: bool = False) -> int:
        """How many losses all files survive.

        At most 0 while the catalog is behind, since files in it may have been deleted and collected.

        Args:
            losses: how many losses files of a profile survive.
            verified: whether a repair has verified, since the catalog fell behind, that everything in it exists.
        """
        self._parts.check_usable()
        survivable = self._parts.figures.survivable(losses)
        return min(0, survivable) if self.behind and not verified else survivable

    @property
    def accelerator(self) -> str:
        """The library that computes the erasure code: ``"isa-l"`` or ``"zfec"``."""
        return accelerator_name(self._parts.profile)

    def stats(self) -> StoreStats:
        """Statistics of the store and its volumes; cheap at any size."""
        self._parts.check_usable()
        self._parts.volumes.check_present()
        return self._parts.figures.stats(
            behind=self.behind, unfinished=self.unfinished, needs_rebuild=self.needs_rebuild
        )

    def hot_objects(self) -> CacheUse:
        """How often objects that users read lately, or had pushed just now, were at hand in memory."""
        self._parts.home.check()
        read, pushed = self._parts.stripes.hot.use, self._parts.stripes.pushed
        return CacheUse(read.hits + pushed.hits, read.misses, read.bytes_used + pushed.size)

    def trouble(self) -> str:
        """Why the catalog cannot be used now; empty if it can. Retries a catalog that failed recently."""
        self._parts.home.check()
        return self._parts.catalog.trouble()

    @checked
    def is_busy(self, within_s: float = 0.25) -> bool:
        """Whether users' data was read or written within the last ``within_s`` seconds."""
        self._parts.home.check()
        return self._parts.activity.is_busy(within_s)

    def pace_healing(self, pace: Pace) -> None:
        """Set how the healing of missing shards gives way to users."""
        self._parts.healer.pace = pace

    def healing(self) -> HealingState:
        """The progress of healing damage that reads have found."""
        self._parts.home.check()
        return self._parts.healer.state()

    def wait_for_healing(self) -> None:
        """Wait until all damage that reads have found so far has been handled."""
        self._parts.home.check()
        self._parts.healer.drain()

"""How many more workers, zones or owners a pool can lose without losing data."""

from __future__ import annotations

from collections.abc import Callable

from storage import ErasureProfile, FileStorage
from storage.catalog import ProfileCount
from storage.erasure import profile_for
from storage.fleet.members import by_owner, by_worker, by_zone
from taskworker.pool.background.repair_scheduling import RepairScheduler
from taskworker.pool.health import Risk
from taskworker.pool.layout_changes import LayoutChanges
from taskworker.transport.survival import Domain
from taskworker.transport.worker_fleet import WorkerFleet


class Risks:
    """Computes how many losses the pool survives, from what is certain at the moment. Thread-safe.

    Args:
        store: knows the erasure profiles in use.
        fleet: knows which workers are present, and where shards are.
        layout: knows the failure domains.
        repair_scheduler: knows what is already lost.
    """

    def __init__(
        self, store: FileStorage, fleet: WorkerFleet, layout: LayoutChanges, repair_scheduler: RepairScheduler
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._layout = layout
        self._repair_scheduler = repair_scheduler

    def by_profile(self) -> list[Risk]:
        """The risk to the stored data, by erasure profile."""
        metadata, *used = reversed(self._store.profiles())
        bound = self._fleet.domain_losses_survivable(profile_for(metadata.k, metadata.n), by_worker)
        return [self._risk(one, bound) for one in used or [metadata]]

    def _risk(self, count: ProfileCount, bound: int) -> Risk:
        """The risk for one profile, whose files survive at most ``bound`` losses, as their metadata do."""
        profile = profile_for(count.k, count.n)
        survivable = min(bound, self._fleet.domain_losses_survivable(profile, by_worker))
        if self._store.behind and not self._fleet.is_mended():
            survivable = min(0, survivable)  # files in this outdated catalog may have been deleted and collected
        if self._has_lost():
            survivable = -1
        return Risk(
            str(profile),
            count.files,
            count.versions,
            survivable,
            self._fleet.losses_survivable_when_mended(profile),
        )

    def survives(self, losses: Callable[[ErasureProfile], int]) -> int:
        """How many losses all stored data survive; ``losses`` returns the number for one profile."""
        return -1 if self._has_lost() else self._store.survivable(losses, verified=self._fleet.is_mended())

    def _has_lost(self) -> bool:
        """Whether everything is mended except objects that can no longer be repaired."""
        return bool(self._repair_scheduler.lost) and self._fleet.is_mended()

    def survivable(self, domain: Domain) -> int:
        """How many more whole failure domains, whichever, may be lost; negative: some data are unreadable now."""
        return self.survives(lambda profile: self._fleet.domain_losses_survivable(profile, domain))

    def fatal(self, workers_survivable: int) -> list[str]:
        """Kinds of failure domain of which one loss may make files unreadable, although any one worker may be lost."""
        if not self._layout.all or workers_survivable < 1:
            return []
        members = self._layout.all[0].members
        kinds = (("owner", by_owner), ("zone", by_zone))
        return [what for what, of in kinds if len({of(one) for one in members}) > 1 and self.survivable(of) < 1]

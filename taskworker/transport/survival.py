"""How many workers, zones or owners a pool can lose with everything readable, going by where shards have been put."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage.erasure import ErasureProfile
from storage.fleet.layout import Layout, rows_survive
from storage.fleet.members import Member, by_worker
from taskworker.transport.target_history import TargetHistory
from taskworker.transport.targets import Targets

Domain = Callable[[Member], str]
"""Names what a member fails together with."""


@dataclass(frozen=True, slots=True)
class Survival:
    """What is known of the members at one moment.

    Attributes:
        layout: the current one.
        history: where shards have been put.
        members: slots of all members there are.
        gone: those whose shards do not count: they are away, or distrusted.
        lacking: those that may lack something that belongs on them.
        full: those that have no space.
        is_mended: whether every shard is where it should be put now.
    """

    layout: Layout
    history: TargetHistory
    members: frozenset[int]
    gone: frozenset[int]
    lacking: Sequence[int]
    full: frozenset[int]
    is_mended: bool

    def losses(self, profile: ErasureProfile, domain: Domain) -> int:
        """How many more whole failure domains may be lost, whichever; -1 if some files cannot be read now.

        What was there when all was last mended is where it was then; what came since is on the targets of
        its time.

        Args:
            profile: how the files are coded.
            domain: what fails together.
        """
        latest, history = self.history.latest, self.history
        if latest is None:
            return -1
        if self.is_mended:
            return self._when_mended(latest, profile, domain)
        survivable = self.layout.losses_survivable(profile.k, domain, self.lacking, profile.n)
        if history.mended is not None:
            gone = self.gone | history.emptied
            places = (*history.all(), latest)
            survivable = max(survivable, min(self._by(targets, profile, domain, gone) for targets in places))
        return survivable

    def losses_when_mended(self, profile: ErasureProfile) -> int:
        """How many more workers may be lost, whichever, once every shard is where it should be put now."""
        latest = self.history.latest
        return -1 if latest is None else self._when_mended(latest, profile, by_worker)

    def _when_mended(self, latest: Targets, profile: ErasureProfile, domain: Domain) -> int:
        survivable = self._by(latest, profile, domain, self.gone)
        if self.full:  # what they held before is there still
            survivable = min(survivable, self.layout.losses_survivable(profile.k, domain, self.gone, profile.n))
        return survivable

    def _by(self, targets: Targets, profile: ErasureProfile, domain: Domain, gone: frozenset[int]) -> int:
        """The same of stripes that lie as ``targets`` say."""
        of = {member.slot: domain(member) for member in targets.layout.members}
        forgotten = of.keys() - self.members
        return rows_survive(targets.rows(profile.k, profile.n), profile.k, of, gone | forgotten)

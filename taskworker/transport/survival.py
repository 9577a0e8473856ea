"""How many workers, zones or owners a pool can lose with all data readable, by where shards were written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage.erasure import ErasureProfile
from storage.fleet.layout import Layout, rows_survive
from storage.fleet.members import Member, by_worker
from taskworker.transport.target_history import TargetHistory
from taskworker.transport.targets import Targets

Domain = Callable[[Member], str]
"""Names the failure domain of a member."""


@dataclass(frozen=True, slots=True)
class Survival:
    """What is known of the members at one moment.

    Attributes:
        layout: the current layout.
        history: where shards have been written.
        members: slots of all members.
        gone: members whose shards do not count, because they are away or distrusted.
        lacking: members that may lack shards that belong on them.
        full: members that have no space.
        is_mended: whether every shard is where it should be now.
    """

    layout: Layout
    history: TargetHistory
    members: frozenset[int]
    gone: frozenset[int]
    lacking: Sequence[int]
    full: frozenset[int]
    is_mended: bool

    def losses(self, profile: ErasureProfile, domain: Domain) -> int:
        """How many more whole failure domains, whichever, may be lost; -1 if some files cannot be read now.

        Shards from before the last complete mend are where they were then; later ones are on the targets of their time.

        Args:
            profile: the files' erasure profile.
            domain: names the failure domain of a member.
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
        """How many more workers, whichever, may be lost once every shard is where it should be now."""
        latest = self.history.latest
        return -1 if latest is None else self._when_mended(latest, profile, by_worker)

    def _when_mended(self, latest: Targets, profile: ErasureProfile, domain: Domain) -> int:
        survivable = self._by(latest, profile, domain, self.gone)
        if self.full:  # they still have what they held before
            survivable = min(survivable, self.layout.losses_survivable(profile.k, domain, self.gone, profile.n))
        return survivable

    def _by(self, targets: Targets, profile: ErasureProfile, domain: Domain, gone: frozenset[int]) -> int:
        """How many losses stripes survive that lie on these targets."""
        of = {member.slot: domain(member) for member in targets.layout.members}
        forgotten = of.keys() - self.members
        return rows_survive(targets.rows(profile.k, profile.n), profile.k, of, gone | forgotten)

"""How a pool deals with workers that lie: reports them, limits the repairs they can cause, and drains them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median_low

from storage import ErasureProfile, FileStorage
from storage.fleet.members import Member
from taskworker.pool.events import Events
from taskworker.pool.layout_changes import LayoutChanges
from taskworker.pool.membership import Membership, Standing
from taskworker.transport.worker_fleet import WorkerFleet

_REPAIR_BYTES_MIN = 256 << 20


class LiarWatch:
    """Watches workers that the fleet distrusts.

    :meth:`watch` is called by one thread at a time; :meth:`repair_bytes_max` is thread-safe.

    Args:
        store: knows how much is stored.
        membership: the members.
        fleet: knows who lied.
        layout: changes when a liar is drained.
        events: records distrust and drains.
        profile: the pool's erasure profile.
    """

    def __init__(
        self,
        store: FileStorage,
        membership: Membership,
        fleet: WorkerFleet,
        layout: LayoutChanges,
        events: Events,
        *,
        profile: ErasureProfile,
    ) -> None:
        self._store = store
        self._membership = membership
        self._fleet = fleet
        self._layout = layout
        self._events = events
        self._profile = profile
        self._told: frozenset[int] = frozenset()

    def repair_bytes_max(self, slot: int) -> int:
        """The most bytes that an honest worker can lack within an hour.

        That is three times all that it should hold, a constant, and the shares of other workers that went away, each
        counted as often as it did.
        """
        layout = self._layout.current  # read once, as it may change at any moment
        shares = layout.shares() if layout is not None else {}
        told = self._bytes_told(layout.members, shares) if layout is not None else 0.0
        stored = max(self._store.counts().logical_bytes * self._profile.n / self._profile.k, told)
        gone = sum(shares.get(other, 0.0) for other in self._fleet.gone_but_for(slot))
        return _REPAIR_BYTES_MIN + int((3 * shares.get(slot, 0.0) + gone) * stored)

    def _bytes_told(self, members: Iterable[Member], shares: Mapping[int, float]) -> float:
        """An estimate of what all workers hold, with earlier versions: the median of the trusted workers' reports."""
        told = [
            self._membership.load(member.worker).bytes_live / shares[member.slot]
            for member in members
            if shares[member.slot] and self._fleet.trusts(member.slot)
        ]
        return median_low(told) if told else 0.0

    def watch(self) -> None:
        """Report distrusted workers, and drain those that go on lying if enough others are present."""
        self._fleet.forgive()
        distrusted = self._fleet.distrusted()
        for slot in sorted(distrusted - self._told):
            self._events.note(
                "distrusted",
                f"worker {self._fleet.name(slot)} was caught giving wrong answers; others take its place",
            )
        self._told = distrusted
        records = {record.slot: record for record in self._membership.records}
        for slot in self._fleet.proven_liars():
            record = records.get(slot)
            trusted = {
                member.worker for member in self._membership.members() if member.slot not in distrusted
            } - self._absent_workers()
            if record is None or record.standing is not Standing.IN or len(trusted) < self._profile.n:
                continue
            self._membership.set_standing(record.worker, Standing.DRAINING)
            self._layout.change()
            self._events.note(
                "drain", f"worker {record.worker} is being drained: it lied {self._fleet.times_lied(slot)} times"
            )

    def _absent_workers(self) -> set[str]:
        return {record.worker for record in self._membership.records if self._fleet.volume(record.slot) is None}

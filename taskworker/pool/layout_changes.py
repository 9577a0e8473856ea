"""Changes of the layout: it follows the members, and both are kept in the catalog together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import msgspec

from storage.errors import InvalidArgument
from storage.fleet.layout import Layout, Moves
from storage.fleet.members import Member
from taskworker.pool.events import Events
from taskworker.pool.membership import Membership
from taskworker.pool.roster import Roster, RosterKeeper
from taskworker.transport.worker_fleet import WorkerFleet

_RETIRED_KEPT = 8

# Workers of one site start within moments of each other: one layout for all of them, not one each.
_SETTLE_S = 0.3
_RETRY_S = 1.0


class LayoutChanges:
    """The layouts of a pool, and how one follows another. Thread-safe.

    One lock is held from reading the members to keeping them together with the layouts, so that what is kept agrees.
    With it held, the membership's and the fleet's own locks are taken, and the catalog is written. None of these call
    back, so this lock always comes first. It is never held while events are noted, ``on_changed`` is called, or a
    worker is asked something.

    Args:
        keeper: keeps members and layouts.
        membership: who has a part in the layout.
        fleet: told of every new layout.
        events: told likewise.
        width: how many shards a stripe has.
        clock_s: monotonic seconds.

    Attributes:
        on_changed: called after each new layout: there is something to mend.
    """

    def __init__(
        self,
        keeper: RosterKeeper,
        membership: Membership,
        fleet: WorkerFleet,
        events: Events,
        *,
        width: int,
        clock_s: Callable[[], float],
    ) -> None:
        self._keeper = keeper
        self._membership = membership
        self._fleet = fleet
        self._events = events
        self._width = width
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._due_s: float | None = None
        self.on_changed: Callable[[], None] = lambda: None
        if self.all:
            fleet.use_layouts(self.all[0], self.all[1:])
            fleet.use_unproved(record.slot for record in membership.records if record.allowed)

    @property
    def all(self) -> tuple[Layout, ...]:
        """The current layout and those whose shards have not all moved yet, the newest first."""
        return self._keeper.roster.layouts

    @property
    def current(self) -> Layout | None:
        """The current layout; None before the first worker joined."""
        layouts = self.all
        return layouts[0] if layouts else None

    def preview(self, add: Iterable[Member], remove: Iterable[str]) -> tuple[Layout, Moves]:
        """The layout after a change of members, and what would move. Changes nothing.

        Raises:
            InvalidArgument: a worker to remove is not there, or nobody would be left.
        """
        members = self._membership.members()
        gone = set(remove)
        unknown = gone - {member.worker for member in members}
        if unknown:
            raise InvalidArgument(f"no worker {', '.join(sorted(unknown))} has a part in the layout")
        slot = self._membership.slots_given
        added = [msgspec.structs.replace(member, slot=slot + index) for index, member in enumerate(add)]
        kept = [member for member in members if member.worker not in gone]
        if not self.all:
            after = Layout.first([*kept, *added], self._width)
            return after, Moves(0.0, {}, {})
        after = self.all[0].after([*kept, *added])
        return after, self.all[0].moves_to(after)

    # -- changing --------------------------------------------------------------------------------

    def change_soon(self) -> None:
        """Have :meth:`change_if_due` make a new layout in a moment."""
        self._due_s = self._clock_s() + _SETTLE_S

    @property
    def is_planned(self) -> bool:
        """Whether :meth:`change_if_due` will make a new layout."""
        return self._due_s is not None

    def change_if_due(self) -> None:
        """Make the layout that was planned, if it is time to."""
        due_s = self._due_s
        if due_s is not None and self._clock_s() >= due_s:
            self.change()

    def is_overdue(self) -> bool:
        """Whether members and layout disagree, and no change is planned.

        A crash, or a catalog that could not be written, came between them.
        """
        return self._due_s is None and self._differs(self._membership.members())

    def change(self) -> None:
        """Make the layout fit the members, and keep both."""
        with self._lock:
            # Until it is done, it is due: it is tried again where it cannot be kept now.
            self._due_s = self._clock_s() + _RETRY_S
            members = self._membership.members()
            changes = self._differs(members)
            layouts = (self._next(members), *self.all) if changes else self.all
            self._keep(layouts)
            self._due_s = None
        if changes:
            self._events.note("layout", f"layout {layouts[0].version} over {len(members)} workers")
            self.on_changed()

    def keep_members(self) -> None:
        """Keep the members as they are now, with the layouts as they were."""
        with self._lock:
            self._keep(self.all)

    def settle(self) -> bool:
        """Every shard is where the current layout wants it: former layouts have served, drains have ended.

        Returns:
            False if the layout, or who is there, has changed since.
        """
        with self._lock:
            if not self._fleet.is_mended():
                return False
            drained = self._membership.drained(self.all[0].by_slot)
            self._keep(self.all[:1])
        for record in drained:
            self._events.note(
                "drained", f"worker {record.worker} is drained: nothing on it is needed, and it may be stopped"
            )
        return True

    def _differs(self, members: list[Member]) -> bool:
        """Whether members have come to take part, or have ceased to, that the layout does not know of yet."""
        return bool(members) and not (self.all and self.all[0].members == tuple(members))

    def _next(self, members: list[Member]) -> Layout:
        """The layout over these members: if they made one before, the same table, as they still have its shards."""
        if not self.all:
            return Layout.first(members, self._width)
        current, retired = self.all[0], self._keeper.roster.retired
        before = next((one for one in (*self.all, *retired) if one.members == tuple(members)), None)
        if before is not None:
            return Layout(current.version + 1, current.width, members, before.rows)
        return current.after(members)

    def _keep(self, layouts: tuple[Layout, ...]) -> None:
        """Keep the members as they are now together with these layouts, and place by them; with the lock held."""
        before = self._keeper.roster
        retired = [one for one in (*before.layouts, *before.retired) if one not in layouts][:_RETIRED_KEPT]
        records = tuple(self._membership.records)
        self._fleet.use_unproved(record.slot for record in records if record.allowed)
        self._keeper.keep(Roster(records, self._membership.slots_given, layouts, tuple(retired)))
        if layouts != before.layouts:
            self._fleet.use_layouts(layouts[0], layouts[1:])

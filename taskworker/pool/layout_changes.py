"""Changes of the layout: it follows the members, and both are stored in the catalog together."""

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

# Workers of one site start within moments of each other; they get one layout together, not one each.
_SETTLE_S = 0.3
_RETRY_S = 1.0


class LayoutChanges:
    """The pool's layouts, and their changes. Thread-safe.

    One lock is held from reading the members until they are stored together with the layouts, so that both agree. While
    it is held, the membership's and the fleet's own locks are taken, and the catalog is written. None of these call
    back, so this lock always comes first. It is never held while events are noted, ``on_changed`` is called, or a
    worker is called.

    Args:
        keeper: stores members and layouts.
        membership: knows who is in the layout.
        fleet: gets every new layout.
        events: records every new layout.
        width: number of shards of a stripe.
        clock_s: monotonic seconds.

    Attributes:
        on_changed: called after each new layout, since shards have to move.
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
        """The current layout, then former ones from which shards have yet to move, newest first."""
        return self._keeper.roster.layouts

    @property
    def current(self) -> Layout | None:
        """The current layout; None before the first worker joined."""
        layouts = self.all
        return layouts[0] if layouts else None

    def preview(self, add: Iterable[Member], remove: Iterable[str]) -> tuple[Layout, Moves]:
        """The layout after a change of members, and what would move. Changes nothing.

        Raises:
            InvalidArgument: a worker to remove is not in the layout, or no member would be left.
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
        """Plan a new layout, which :meth:`change_if_due` makes a moment later."""
        self._due_s = self._clock_s() + _SETTLE_S

    @property
    def is_planned(self) -> bool:
        """Whether a change is planned."""
        return self._due_s is not None

    def change_if_due(self) -> None:
        """Make the planned layout, if its time has come."""
        due_s = self._due_s
        if due_s is not None and self._clock_s() >= due_s:
            self.change()

    def is_overdue(self) -> bool:
        """Whether members and layout disagree although no change is planned.

        This happens after a crash, or after the catalog could not be written.
        """
        return self._due_s is None and self._differs(self._membership.members())

    def change(self) -> None:
        """Make a layout for the present members if they have changed, and store both."""
        with self._lock:
            # It stays planned until it is done, so that it is tried again if the catalog cannot be written now.
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
        """Store the members as they are now, with the layouts unchanged."""
        with self._lock:
            self._keep(self.all)

    def settle(self) -> bool:
        """Note that every shard is where the current layout has it: drop former layouts, and end drains.

        Returns:
            False if the layout, or the set of present members, has changed since.
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
        """Whether the members to lay out differ from those of the current layout."""
        return bool(members) and not (self.all and self.all[0].members == tuple(members))

    def _next(self, members: list[Member]) -> Layout:
        """The layout over these members.

        If an earlier layout was over the same members, its table is used again, as they still have the shards.
        """
        if not self.all:
            return Layout.first(members, self._width)
        current, retired = self.all[0], self._keeper.roster.retired
        before = next((one for one in (*self.all, *retired) if one.members == tuple(members)), None)
        if before is not None:
            return Layout(current.version + 1, current.width, members, before.rows)
        return current.after(members)

    def _keep(self, layouts: tuple[Layout, ...]) -> None:
        """Store the members as they are now together with these layouts, and use both; the caller holds the lock."""
        before = self._keeper.roster
        retired = [one for one in (*before.layouts, *before.retired) if one not in layouts][:_RETIRED_KEPT]
        records = tuple(self._membership.records)
        self._fleet.use_unproved(record.slot for record in records if record.allowed)
        self._keeper.keep(Roster(records, self._membership.slots_given, layouts, tuple(retired)))
        if layouts != before.layouts:
            self._fleet.use_layouts(layouts[0], layouts[1:])

"""The workers that a client reads from, as a fleet of stores that can only be read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from typing import Any

from storage.clocks import monotonic_s
from storage.erasure import ErasureProfile
from storage.errors import StorageError, StoreReadOnly
from storage.fleet.fleet import Fleet, Placement
from storage.keys import StripeKey, data_shards, shard_count
from storage.shards import Shard, ShardStore, VolumeFailed
from taskworker.client.direct.page import Holder, Page
from taskworker.transport.ticketed_volume import Granted, TicketedVolume

NOBODY = -1
"""The slot of no worker."""
# Over a distant link, a lost packet is sent again after 1 s. Nobody waits longer for a worker that may be out of reach.
CONNECT_S = 2.0
_PAUSE_S = 60.0
_PAUSE_S_MAX = 900.0

Connect = Callable[[Holder, int, Page], TicketedVolume]
"""Makes the volume of a worker, which is not connected yet; takes the worker's number, and a page that names it."""


class TicketedFleet(Fleet[Any]):
    """See :class:`storage.fleet.fleet.Fleet`. Slots are given to workers as the pool names them. Thread-safe.

    A worker that cannot be reached or fails is not tried again for a minute; each time, for longer.

    Args:
        connect: makes the volumes of workers.
        connecting: threads to connect with.
        clock_s: monotonic seconds.
    """

    remote = True

    def __init__(self, connect: Connect, connecting: Executor, clock_s: Callable[[], float] = monotonic_s) -> None:
        super().__init__(clock_s)
        self._connect = connect
        self._connecting = connecting
        self._numbers: dict[Holder, int] = {}
        self._granted: dict[StripeKey, list[Granted]] = {}  # the latest last, as several gets may read the same
        self._tries: dict[int, tuple[int, float]] = {}  # by slot: failures, and from when on to try again
        self._joining = threading.Lock()

    # -- what may be read ------------------------------------------------------------------------

    def find(self, stripe: StripeKey) -> Granted | None:
        """What is known of an object."""
        found = self._granted.get(stripe)
        return found[-1] if found else None

    def enter(self, page: Page) -> bool:
        """Let the chunks of a page be read; return whether enough of their workers are reached."""
        with self._joining:
            slots = [self._slot_of(holder) for holder in page.holders]
            self._connect_all(slots, page)
        there = [slots[at] if self.volume(slots[at]) is not None else NOBODY for at in range(len(slots))]
        for stripe, length, placed in zip(page.stripes, page.lengths, page.placed, strict=True):
            holders = tuple(NOBODY if at is None else there[at] for at in placed)
            k = data_shards(stripe)
            if len(holders) - holders.count(NOBODY) < k:
                return False
            with self._lock:
                self._granted[stripe] = [*self._granted.get(stripe, ()), Granted(length, page.ticket, holders)]
        return True

    def leave(self, page: Page) -> None:
        """Forget what was said about the chunks of a page."""
        with self._lock:
            for stripe in page.stripes:
                left = [one for one in self._granted.get(stripe, ()) if one.ticket != page.ticket]
                if left:
                    self._granted[stripe] = left  # at once, as others look it up meanwhile
                else:
                    self._granted.pop(stripe, None)

    def _slot_of(self, holder: Holder) -> int:
        number = self._numbers.get(holder)
        if number is None:
            number = self._numbers[holder] = len(self._numbers)
            self._stores[number], self._moves[number] = None, 0
        return number

    def _connect_all(self, slots: Sequence[int], page: Page) -> None:
        now_s = self._clock_s()
        due = [
            (slot, holder)
            for slot, holder in zip(slots, page.holders, strict=True)
            if self._stores[slot] is None and self._tries.get(slot, (0, now_s))[1] <= now_s
        ]
        made = {self._connecting.submit(self._connected, holder, slot, page): slot for slot, holder in due}
        done, _late = wait(made, timeout=CONNECT_S)
        for future, slot in made.items():
            volume = future.result() if future in done else None
            if volume is None:
                future.add_done_callback(_close_late)
                self._note_failure(slot)
                continue
            with self._lock:
                self._stores[slot] = volume
                self._moves[slot] += 1
            self._tries.pop(slot, None)

    def _connected(self, holder: Holder, slot: int, page: Page) -> TicketedVolume | None:
        try:
            volume = self._connect(holder, slot, page)
        except StorageError:  # the address is none to connect to
            return None
        try:
            volume.connect()
        except StorageError:
            volume.close()
            return None
        return volume

    def _note_failure(self, slot: int) -> None:
        failures = self._tries.get(slot, (0, 0.0))[0] + 1
        self._tries[slot] = failures, self._clock_s() + pause_s(failures)

    # -- where shards are ------------------------------------------------------------------------

    @property
    def placement(self) -> Placement:
        """Where the pool says that shards are."""
        return _Placed(self.find)

    def name(self, slot: int) -> str:
        """The worker's address."""
        return next((holder.address for holder, number in list(self._numbers.items()) if number == slot), "unknown")

    def place(self, slot: int) -> str:
        """See :meth:`name`."""
        return self.name(slot)

    def directories(self) -> list[Path]:
        """Empty: they are on other machines."""
        return []

    # -- failures, which the user does not see ---------------------------------------------------

    def set_offline(self, slot: int, reason: str, failed: ShardStore | None = None) -> None:
        """See :meth:`Fleet.set_offline`."""
        with self._lock:
            store = self._stores.get(slot)
            if store is None or (failed is not None and store is not failed):
                return
            self._stores[slot] = None
            self._moves[slot] += 1
            self._reasons[slot] = reason
            self._note_failure(slot)
        store.abandon(reason)

    def note_unavailable(self, slot: int, reason: str) -> None:
        """See :meth:`Fleet.note_unavailable`."""
        self._reasons[slot] = reason

    def could_not_read(self, slot: int, store: ShardStore, error: Exception) -> None:
        """See :meth:`Fleet.could_not_read`."""
        if isinstance(error, VolumeFailed):
            self.set_offline(slot, str(error), store)
        else:
            self.note_unavailable(slot, str(error))

    def losses_survivable(self, _profile: ErasureProfile) -> int:
        """Unknown to a client, so none."""
        return 0

    def reattach(self) -> list[int]:
        """None: workers are tried again with later pages."""
        return []

    def check_present(self, *, at_once: bool = False) -> None:
        """Reads show whether workers are there."""

    # -- writing, which is not possible ----------------------------------------------------------

    def append(self, _batches: dict[int, list[Shard]], *, urgent: bool = False) -> Collection[int]:
        """Refuse."""
        raise _read_only()

    def sync(self) -> None:
        """Refuse."""
        raise _read_only()

    def sync_each(self) -> None:
        """Refuse."""
        raise _read_only()

    def require_writable(self, _profile: ErasureProfile, since: tuple[int, ...] | None = None) -> None:
        """Refuse."""
        raise _read_only()

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        self._close_stores()


class _Placed:
    """See :class:`storage.fleet.fleet.Placement`."""

    def __init__(self, find: Callable[[StripeKey], Granted | None]) -> None:
        self._find = find

    def volumes(self, object_id: bytes, n: int) -> tuple[int, ...]:
        """The slot of the worker of each shard of a stripe; of no worker for those that nobody has."""
        granted = self._find(StripeKey(object_id))
        return (NOBODY,) * n if granted is None or shard_count(object_id) != n else granted.holders


def pause_s(failures: int) -> float:
    """How long not to try again what has failed this often in a row, at least once."""
    doublings = min(failures - 1, 4)  # the longest pause is shorter than that
    return min(_PAUSE_S * (1 << doublings), _PAUSE_S_MAX)


def _close_late(connected: Future[TicketedVolume | None]) -> None:
    """Close a connection for which nobody waits any more."""
    if not connected.cancelled() and (volume := connected.result()) is not None:
        volume.close()


def _read_only() -> StoreReadOnly:
    return StoreReadOnly("clients read from workers, and write through the pool")

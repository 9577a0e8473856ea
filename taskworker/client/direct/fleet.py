"""The workers that a client reads from and writes to, as a fleet of stores that is only read as such."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple, cast

from storage.clocks import monotonic_s
from storage.erasure import ErasureProfile
from storage.errors import StorageError, StoreReadOnly
from storage.fleet.fleet import Fleet, Placement
from storage.keys import StripeKey, data_shards, shard_count
from storage.shards import Shard, ShardStore, VolumeFailed
from storage.submitting import submitted
from taskworker.client.direct.page import Holder, Holders, Page
from taskworker.client.direct.pauses import pause_s
from taskworker.client.direct.reader import Granting, granted_now
from taskworker.transport.ticketed_volume import Granted, TicketedVolume

NOBODY = -1
"""The slot of no worker."""
# Over a distant link, a lost packet is sent again after 1 s. Nobody waits longer for a worker that may be out of reach.
CONNECT_S = 2.0

Connect = Callable[[Holder, int, Holders], TicketedVolume]
"""Makes the volume of a worker, which is not connected yet; takes the worker's number, and what names it."""

AwaitAll = Callable[[Collection[Future[None]], float], None]
"""Waits until all have ended, for so many seconds at most."""


class Entered(NamedTuple):
    """A page of which enough workers are reached, and what a get may read by it."""

    page: Page
    granted: Granting


class _Attempt(NamedTuple):
    """Connecting to a worker, for all gets that need it, and since when."""

    ends: Future[None]
    since_s: float


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
        # The lock of the base class guards these.
        self._numbers: dict[Holder, int] = {}
        self._tries: dict[int, tuple[int, float]] = {}  # by slot: failures, and from when on to try again
        self._attempts: dict[int, _Attempt] = {}  # by slot

    # -- what may be read ------------------------------------------------------------------------

    def enter(self, page: Page, await_all: AwaitAll) -> Entered | None:
        """Connect to the workers of a page; return what a get may read by it, or None if too few are reached.

        Raises:
            StoreClosed: the client is closed.
            StoreUnavailable: the machine has no thread to connect with.
            StorageError: whatever ``await_all`` raises.
        """
        slots = self.connect(page, await_all)
        there = [slot if self.volume(slot) is not None else NOBODY for slot in slots]
        granted: dict[StripeKey, Granted] = {}
        for stripe, length, placed in zip(page.stripes, page.lengths, page.placed, strict=True):
            holders = tuple(NOBODY if at is None else there[at] for at in placed)
            if len(holders) - holders.count(NOBODY) < data_shards(stripe):
                return None
            granted[stripe] = Granted(length, page.ticket, holders)
        return Entered(page, granted)

    def reaches_any(self, page: Page) -> bool:
        """Whether any of a page's workers is reached."""
        with self._lock:
            return any(self._stores[self._slot_of(holder)] is not None for holder in page.holders)

    def _slot_of(self, holder: Holder) -> int:
        number = self._numbers.get(holder)
        if number is None:
            number = self._numbers[holder] = len(self._numbers)
            self._stores[number], self._moves[number] = None, 0
        return number

    def connect(self, page: Holders, await_all: AwaitAll) -> list[int]:
        """Wait for connections to the workers of a page or of places, which others may need as well.

        Returns:
            Their slots. Some of them may not be connected.

        Raises:
            StoreClosed, StoreUnavailable, StorageError: see :meth:`enter`.
        """
        with self._lock:
            slots = [self._slot_of(holder) for holder in page.holders]
            coming = [self._attempt(slot, holder, page) for slot, holder in zip(slots, page.holders, strict=True)]
        attempts = [attempt for attempt in coming if attempt is not None]
        if attempts:  # nobody waits for longer because others have begun to wait before
            left_s = max(attempt.since_s for attempt in attempts) + CONNECT_S - self._clock_s()
            await_all([attempt.ends for attempt in attempts], left_s)
        return slots

    def _attempt(self, slot: int, holder: Holder, page: Holders) -> _Attempt | None:
        """Connecting to a worker; None: it is connected, or is not to be tried now. The caller holds the lock."""
        now_s = self._clock_s()
        if self._stores[slot] is not None or self._tries.get(slot, (0, now_s))[1] > now_s:
            return None
        attempt = self._attempts.get(slot)
        if attempt is None:
            closed = "the client was closed while a file was being read"
            ends = submitted(closed, self._connecting, self._join, holder, slot, page)
            attempt = self._attempts[slot] = _Attempt(ends, now_s)
        return attempt

    def _join(self, holder: Holder, slot: int, page: Holders) -> None:
        """Connect to a worker, in a thread of its own."""
        volume: TicketedVolume | None = None
        try:
            volume = self._connected(holder, slot, page)
        finally:  # whatever happened, others try again
            with self._lock:
                self._attempts.pop(slot, None)  # whoever began it may have been interrupted before noting it
                is_closed = self._closed
                if volume is None:
                    self._note_failure(slot)
                elif not is_closed:
                    self._stores[slot] = volume
                    self._moves[slot] += 1
                    self._tries.pop(slot, None)
        if is_closed and volume is not None:
            volume.close()

    def _connected(self, holder: Holder, slot: int, page: Holders) -> TicketedVolume | None:
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
        return _Placed()

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

    def note_refused(self, slot: int, volume: TicketedVolume, error: StorageError) -> None:
        """Note that a worker did not take what was to be written."""
        self.could_not_read(slot, cast("ShardStore", volume), error)

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
        with self._lock:
            self._closed = True
        self._close_stores()


class _Placed:
    """See :class:`storage.fleet.fleet.Placement`."""

    def volumes(self, object_id: bytes, n: int) -> tuple[int, ...]:
        """The slot of the worker of each shard of a stripe; of no worker for those that nobody has."""
        granted = granted_now(StripeKey(object_id))
        return (NOBODY,) * n if granted is None or shard_count(object_id) != n else granted.holders


def _read_only() -> StoreReadOnly:
    return StoreReadOnly("clients read from workers, and write through the pool")

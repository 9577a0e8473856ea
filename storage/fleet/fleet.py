"""The shard stores of one store, by slot: which are usable, and what happens when one is not.

What is common to the volumes on this machine's disks (:mod:`storage.fleet.volumes`) and to a pool's workers.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from storage.erasure import ErasureProfile
from storage.errors import StorageError, StoreClosed
from storage.keys import ShardKey, StripeKey, data_shards, object_id_of, shard_count, slot_of
from storage.reports import Damage
from storage.shards import Shard, ShardStore, VolumeFailed, VolumeUnavailable

log = logging.getLogger(__name__)

StoreT = TypeVar("StoreT", bound=ShardStore)

_DAMAGE_KEPT = 1000
_LOOK_S = 0.05


class Placement(Protocol):
    """Where the shards of a stripe belong."""

    def volumes(self, object_id: bytes, n: int) -> tuple[int, ...]:
        """The slot of the store that holds each shard 0…n-1 of the object."""


class Fleet(ABC, Generic[StoreT]):
    """Shard stores by slot. One that fails goes offline; the others carry on.

    ``incomplete`` holds the slots that may lack shards they should have, and wait for repair.
    ``recent_damage`` is what was met lately, for stats and operators.

    A store whose machine refuses for the moment stays online. Nothing counts as missing or bad for that.
    """

    remote = False
    """Whether each access costs a round trip, so that reads are sent out together and appends gathered."""

    stand_ins = False
    """Whether others take the shards of a store that is away, so that a push can always leave all n."""

    margin = 1
    """What has fewer shards left than this many over k is in danger, and waits for nobody."""

    def __init__(self) -> None:
        self.incomplete: set[int] = set()
        self.recent_damage: deque[Damage] = deque(maxlen=_DAMAGE_KEPT)
        self.witnesses: dict[int, ShardKey] = {}  # by slot, where they are kept: a version durable there, the latest
        self.on_attached: Callable[[int], None] = lambda slot: None  # told of each store that came back
        self.is_pinned: Callable[[StripeKey], bool] = lambda stripe: False  # whether a write under way counts on it
        self._stores: dict[int, StoreT | None] = {}
        self._moves: dict[int, int] = {}  # how often each went offline or came back
        self._lock = threading.Lock()
        self._closed = False
        self._lost_at_s = -math.inf  # when a store last went offline, by the monotonic clock
        self._reasons: dict[int, str] = {}  # why a store is offline, or could not do what it was asked to

    # -- access ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def placement(self) -> Placement:
        """Where shards belong now."""

    @abstractmethod
    def name(self, slot: int) -> str:
        """What people call the store in a slot."""

    def owner(self, slot: int) -> str:
        """Who runs the machine of a store, and can have all of theirs say the same; "" if that is not told."""
        return ""

    @abstractmethod
    def place(self, slot: int) -> str:
        """The directory or worker that a store is in."""

    @abstractmethod
    def directories(self) -> list[Path]:
        """The directories on this machine that stores are in."""

    @abstractmethod
    def losses_survivable(self, profile: ErasureProfile) -> int:
        """How many more whole stores may be lost at once, whichever, with files of this profile readable."""

    def __len__(self) -> int:
        return len(self._stores)

    @property
    def slots(self) -> list[int]:
        """All slots there are, online or not."""
        return list(self._stores)

    def volume(self, slot: int) -> StoreT | None:
        """The store in a slot, None while it is offline."""
        return self._stores.get(slot)

    def online(self) -> list[tuple[int, StoreT]]:
        """The usable stores with their slots."""
        return [(slot, store) for slot, store in list(self._stores.items()) if store is not None]

    def away(self) -> list[int]:
        """Stores that belong here, may hold anything, and are offline."""
        return [slot for slot, store in list(self._stores.items()) if store is None]

    def state(self, slot: int) -> str:
        """``"ok"``, ``"incomplete"`` (waits for repair) or ``"offline"``."""
        if self._stores.get(slot) is None:
            return "offline"
        return "incomplete" if slot in self.incomplete else "ok"

    def reason(self, slot: int) -> str:
        """Why a store is offline or refuses; empty if nothing is known to be wrong with it."""
        return self._reasons.get(slot, "")

    def takes_no_writes(self, slot: int) -> bool:
        """Whether a store is there, and read-only or full, so that what it lacks cannot be put on it."""
        return False

    def holders(self, stripe: StripeKey) -> tuple[int, ...]:
        """The slot of the store that each shard 0…n-1 of a stripe belongs to."""
        return self.placement.volumes(stripe, shard_count(stripe))

    def targets(self, stripe: StripeKey) -> tuple[int, ...]:
        """Where to put each shard now: its holder, or another where that is away and others stand in."""
        return self.holders(stripe)

    def places(self, stripe: StripeKey) -> tuple[int, ...]:
        """Where each shard may be in its place although it would be put elsewhere now: full stores keep theirs.

        A shard is in its place here or on its :meth:`targets`.
        """
        return self.targets(stripe)

    def places_differ(self) -> bool:
        """Whether any shard's :meth:`places` may be another than its :meth:`targets`.

        If not, both are the same for all stripes of a partition that are coded alike, until a store comes or goes.
        """
        return False

    def elsewhere(self, stripe: StripeKey) -> tuple[int, ...]:
        """Further stores that may hold shards of a stripe, the likeliest first."""
        return ()

    def awaited(self, stripe: StripeKey, there: int) -> frozenset[int]:
        """Slots whose shards need not be made again yet: stores that may have them are expected back soon.

        Args:
            stripe: some shards of which are missing.
            there: how many of its shards are known to be there.
        """
        return frozenset()

    def is_in_danger(self, stripe: StripeKey, there: int) -> bool:
        """Whether hardly more shards of a stripe are known to be there than are needed to make the others."""
        k = data_shards(stripe)
        return k <= there < k + self.margin

    # -- failures --------------------------------------------------------------------------------

    def set_offline(self, slot: int, reason: str, failed: ShardStore | None = None) -> None:
        """Stop using a store until it is attached again.

        Args:
            slot: where it is.
            reason: why, for people.
            failed: the store that failed: another that has taken its place meanwhile stays.
        """
        with self._lock:
            store = self._stores.get(slot)
            if store is None or (failed is not None and store is not failed):
                return
            self._stores[slot] = None
            self._moves[slot] += 1
            self._lost_at_s = time.monotonic()
            self._reasons[slot] = reason
            self._changed()
        log.error("volume %s is offline: %s", self.name(slot), reason)
        if self.stand_ins:
            self.incomplete.add(slot)  # what it should get meanwhile goes elsewhere
        self.report("offline", b"", slot, reason)
        try:
            store.abandon(reason)
        except StorageError as error:
            log.error("volume %s could not be closed: %s", self.name(slot), error)

    def _changed(self) -> None:
        """A store came or went; called with the lock held."""

    @contextmanager
    def guard(self, slot: int, store: ShardStore) -> Iterator[None]:
        """If the store fails inside the block, it goes offline and the work goes on behind the block."""
        try:
            yield
        except (VolumeFailed, VolumeUnavailable, StoreClosed) as error:
            self.failed(slot, store, error)

    def failed(self, slot: int, store: ShardStore, error: StorageError) -> None:
        """Take a store that raised this error offline, unless the error may pass.

        Raises the error again if it is not the store's own.
        """
        if isinstance(error, VolumeUnavailable):
            self.note_unavailable(slot, str(error))
        elif isinstance(error, VolumeFailed):
            self.set_offline(slot, str(error), store)
        elif self._stores.get(slot) is store or not isinstance(error, StoreClosed):
            raise error  # otherwise the store has been abandoned meanwhile

    def could_not_read(self, slot: int, store: ShardStore, error: Exception) -> None:
        """A store raised this error instead of giving a shard, which says nothing about the shard."""
        if isinstance(error, VolumeFailed):
            self.set_offline(slot, str(error), store)
        else:
            self.note_unavailable(slot, str(error))

    def note_unavailable(self, slot: int, reason: str) -> None:
        """A store could not do what it was asked to, for now."""
        if self._reasons.get(slot) != reason:
            log.warning("volume %s: %s", self.name(slot), reason)
            self._reasons[slot] = reason
            self.report("unavailable", b"", slot, reason)

    def report(self, kind: str, key: bytes, slot: int, text: str) -> None:
        """Keep a note of damage for stats and operators."""
        self.recent_damage.append(
            Damage(
                time_ms=time.time_ns() // 1_000_000,
                kind=kind,
                object_id=object_id_of(key).hex(),
                slot=slot_of(key) if len(key) > 35 else -1,
                volume=slot,
                text=text,
            )
        )

    def note_whole(self, slots: Collection[int], since: tuple[int, ...]) -> None:
        """All that belongs on these stores was on them, or was put there, in the time from that :meth:`epoch`.

        One that came, went or refused something meanwhile may lack it all the same.
        """
        with self._lock:
            now = self.epoch()
            if now == since:
                self.incomplete.difference_update(slots)

    def note_write_refused(self, slot: int, error: StorageError) -> None:
        """A store refused to make durable what it was given: whoever gave it something looks what is missing."""

    def note_lie(self, slot: int, key: bytes, text: str) -> None:
        """A store was shown to say what is not so."""
        self.report("lie", key, slot, text)

    def note_unread(self, slot: int) -> None:
        """A store says that it holds a shard, and cannot read it now."""

    def note_made(self, slot: int, size: int) -> None:
        """So many bytes of shards that no store had were made anew and put on a store."""

    def trusts(self, slot: int) -> bool:
        """Whether what a store says it holds is counted on."""
        return True

    @abstractmethod
    def reattach(self) -> list[int]:
        """Try the stores that are offline again; returns the slots brought back."""

    def revive(self) -> bool:
        """Try stores that are offline again if it is time to; whether one is back. Others come back by themselves."""
        return False

    @abstractmethod
    def check_present(self, *, at_once: bool = False) -> None:
        """Notice stores that were taken away."""

    # -- writing ---------------------------------------------------------------------------------

    @abstractmethod
    def append(self, batches: dict[int, list[Shard]], *, urgent: bool = False) -> Collection[int]:
        """Append each store's shards. Those that are away, full or refuse are done without, or stood in for.

        Returns:
            The stores whose shards are on none (see :meth:`require_writable`).

        Raises:
            StoreFull: there are others to stand in, and too few of them have space.
        """

    @abstractmethod
    def sync(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Make all online stores durable, at once.

        Args:
            meanwhile: work to do while the disks are at it; it must not count on the outcome.
        """

    def append_and_sync(self, batches: dict[int, list[Shard]], meanwhile: Callable[[], None] | None = None) -> None:
        """:meth:`append`, then :meth:`sync`."""
        self.append(batches)
        self.sync(meanwhile)

    @abstractmethod
    def sync_each(self) -> None:
        """Make all online stores durable without haste, leaving the fast way to commits."""

    def epoch(self) -> tuple[int, ...]:
        """What :meth:`require_writable` can tell from later which stores were offline at any time since."""
        return tuple(self._moves.values())

    def await_change(self, since: tuple[int, ...], within_s: float) -> bool:
        """Wait while a store that went away less than ``within_s`` seconds ago may yet be back.

        Returns:
            Whether one came or went since that :meth:`epoch`.
        """
        while self.epoch() == since:
            if self._closed or time.monotonic() - self._lost_at_s > within_s:
                return False
            time.sleep(_LOOK_S)
        return True

    @abstractmethod
    def require_writable(self, profile: ErasureProfile, since: tuple[int, ...] | None = None) -> None:
        """Refuse a commit whose data one more loss could make unreadable.

        Args:
            profile: how the data is coded.
            since: the :meth:`epoch` when the first of it was written. A store that was away, or refused
                something, in that time may lack shards; it waits for repair.

        Raises:
            InsufficientWorkers: too many stores are offline or refuse, or did.
            StoreFull: likewise, and some of them have no space.
            StoreClosed: the stores are being closed: some may have passed the data over.
        """

    def require_taken(self, profile: ErasureProfile, since: tuple[int, ...]) -> None:
        """Refuse what :meth:`require_writable` would refuse to commit already, before more of it is taken in."""

    # -- closing ---------------------------------------------------------------------------------

    @abstractmethod
    def close(self) -> None:
        """Close all stores."""

    def _close_stores(self) -> None:
        for slot, store in list(self._stores.items()):
            self._stores[slot] = None
            if store is not None:
                try:
                    store.close()
                except StorageError as error:
                    # Nothing acknowledged depends on this flush: opening again replays the segments.
                    log.error("volume %s could not be closed: %s", self.name(slot), error)

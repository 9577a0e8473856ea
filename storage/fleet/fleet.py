"""The shard stores of one store, by slot: which are usable, and what happens if one is not.

The base for volumes on this machine's disks (:mod:`storage.fleet.volumes`), and for a pool's workers.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from storage.clocks import monotonic_s, wall_ms
from storage.erasure import ErasureProfile
from storage.errors import StorageError, StoreClosed, StoreFull
from storage.fleet.orders import Order
from storage.keys import ShardKey, StripeKey, data_shards, object_id_of, shard_count, slot_of
from storage.reports import Damage
from storage.shards import Shard, ShardStore, VolumeFailed, VolumeUnavailable

log = logging.getLogger(__name__)

StoreT = TypeVar("StoreT", bound=ShardStore)

_DAMAGE_KEPT = 1000
_LOOK_S = 0.05


class Placement(Protocol):
    """Decides where the shards of a stripe belong."""

    def volumes(self, object_id: bytes, n: int) -> tuple[int, ...]:
        """The slot of the store for each shard 0…n-1 of the object."""


class Fleet(ABC, Generic[StoreT]):
    """Shard stores by slot. One that fails goes offline; the others carry on.

    ``incomplete`` has the slots that may lack shards and wait for repair.
    ``recent_damage`` has damage found recently, for statistics and operators.

    A store whose machine temporarily refuses stays online, and nothing counts as missing or corrupt because of it.

    Args:
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    remote = False
    """Whether each access costs a round trip, so that reads are sent together and appends are batched."""

    stand_ins = False
    """Whether others take the shards of a store that is away, so that a push can always store all n."""

    margin = 1
    """A stripe with fewer than k plus this many shards is in danger, and is repaired without waiting."""

    def __init__(self, clock_s: Callable[[], float] = monotonic_s, now_ms: Callable[[], int] = wall_ms) -> None:
        self._clock_s = clock_s
        self._now_ms = now_ms
        self.incomplete: set[int] = set()
        self.recent_damage: deque[Damage] = deque(maxlen=_DAMAGE_KEPT)
        self.witnesses: dict[int, ShardKey] = {}  # by slot, if kept: the latest version that is durable there
        self.on_attached: Callable[[int], None] = lambda slot: None  # called for each store that came back
        self.is_pinned: Callable[[StripeKey], bool] = lambda stripe: False  # whether a running write relies on it
        self._stores: dict[int, StoreT | None] = {}
        self._moves: dict[int, int] = {}  # how often each went offline or came back
        self._lock = threading.Lock()
        self._closed = False
        self._lost_at_s = -math.inf  # when a store last went offline, by the monotonic clock
        self._reasons: dict[int, str] = {}  # why a store is offline, or refused a request

    # -- access ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def placement(self) -> Placement:
        """The current placement of shards."""

    @abstractmethod
    def name(self, slot: int) -> str:
        """The name of the store in a slot, for people."""

    def owner(self, slot: int) -> str:
        """The owner of a store's machine, who controls what all of his stores say; "" if unknown."""
        return ""

    @abstractmethod
    def place(self, slot: int) -> str:
        """The directory or worker of a store."""

    @abstractmethod
    def directories(self) -> list[Path]:
        """The directories of stores on this machine."""

    @abstractmethod
    def losses_survivable(self, profile: ErasureProfile) -> int:
        """How many more stores, whichever, may be lost at once with files of this profile still readable."""

    def __len__(self) -> int:
        return len(self._stores)

    @property
    def slots(self) -> list[int]:
        """All slots, online or not."""
        return list(self._stores)

    def volume(self, slot: int) -> StoreT | None:
        """The store in a slot; None while it is offline."""
        return self._stores.get(slot)

    def online(self) -> list[tuple[int, StoreT]]:
        """The usable stores with their slots."""
        return [(slot, store) for slot, store in list(self._stores.items()) if store is not None]

    def away(self) -> list[int]:
        """Slots of offline stores that may hold shards."""
        return [slot for slot, store in list(self._stores.items()) if store is None]

    def state(self, slot: int) -> str:
        """``"ok"``, ``"incomplete"`` (waits for repair) or ``"offline"``."""
        if self._stores.get(slot) is None:
            return "offline"
        return "incomplete" if slot in self.incomplete else "ok"

    def reason(self, slot: int) -> str:
        """Why a store is offline or refuses; empty if no problem is known."""
        return self._reasons.get(slot, "")

    def slow(self) -> Collection[int]:
        """Slots of stores that keep everybody waiting: they are asked last."""
        return ()

    def full(self) -> frozenset[int]:
        """Slots of the stores in whose place others take new shards, because they cannot write."""
        return frozenset()

    def takes_no_writes(self, slot: int) -> bool:
        """Whether a store is online but read-only or full, so that it cannot be given what it lacks."""
        return False

    def unwritable(self, stripe: StripeKey, slots: Collection[int]) -> frozenset[int]:
        """Those of a stripe's shards that belong on full stores, as too few others have space to stand in for these."""
        full = self.full()
        if not full or not slots:
            return frozenset()
        targets = self.targets(stripe)
        return frozenset(slot for slot in slots if targets[slot] in full)

    def why_no_space(self) -> StorageError:
        """The error for a write that too few stores can take, with others in their places."""
        return StoreFull("too few stores have space")

    def note_freed(self, slot: int) -> None:
        """Note that a collect has freed space on a store."""

    def holders(self, stripe: StripeKey) -> tuple[int, ...]:
        """The slot of the store that each shard 0…n-1 of a stripe belongs to."""
        return self.placement.volumes(stripe, shard_count(stripe))

    def targets(self, stripe: StripeKey) -> tuple[int, ...]:
        """Where to write each shard now: to its holder, or if that is away, to its stand-in, if there are any."""
        return self.holders(stripe)

    def places(self, stripe: StripeKey) -> tuple[int, ...]:
        """Where each shard may stay although it would be written elsewhere now: full stores keep theirs.

        A shard is in its place if it is here or on its :meth:`targets`.
        """
        return self.targets(stripe)

    def places_differ(self) -> bool:
        """Whether :meth:`places` may differ from :meth:`targets` for any shard.

        If not, both are the same for all stripes of a partition with the same profile, until a store comes or goes.
        """
        return False

    def elsewhere(self, stripe: StripeKey) -> tuple[int, ...]:
        """Further stores that may hold shards of a stripe, most likely first."""
        return ()

    def is_settled(self, stripe: StripeKey) -> bool:
        """Whether each shard of a stripe ought to be in its place: all its holders are online and lack nothing."""
        holders = self.holders(stripe)
        return self.places(stripe) == holders and all(self.state(slot) == "ok" for slot in holders)

    def awaited(self, stripe: StripeKey, there: int) -> frozenset[int]:
        """Slots whose shards need not be rebuilt yet, because the stores that may have them are expected back soon.

        Args:
            stripe: a stripe with missing shards.
            there: how many of its shards are known to exist.
        """
        return frozenset()

    def is_in_danger(self, stripe: StripeKey, there: int) -> bool:
        """Whether a stripe has hardly more known shards than are needed to rebuild the others."""
        k = data_shards(stripe)
        return k <= there < k + self.margin

    # -- failures --------------------------------------------------------------------------------

    def set_offline(self, slot: int, reason: str, failed: ShardStore | None = None) -> None:
        """Stop using a store until it is attached again.

        Args:
            slot: slot of the store.
            reason: the reason, for people.
            failed: the store that failed; if another has replaced it meanwhile, that one stays.
        """
        with self._lock:
            store = self._stores.get(slot)
            if store is None or (failed is not None and store is not failed):
                return
            self._stores[slot] = None
            self._moves[slot] += 1
            self._lost_at_s = self._clock_s()
            self._reasons[slot] = reason
            self._changed()
        log.error("volume %s is offline: %s", self.name(slot), reason)
        if self.stand_ins:
            self.incomplete.add(slot)  # new shards for it go elsewhere meanwhile
        self.report("offline", b"", slot, reason)
        try:
            store.abandon(reason)
        except StorageError as error:
            log.error("volume %s could not be closed: %s", self.name(slot), error)

    def _changed(self) -> None:
        """Note that a store came or went; the caller holds the lock."""

    @contextmanager
    def guard(self, slot: int, store: ShardStore) -> Iterator[None]:
        """A context in which a failing store goes offline; execution continues after the block."""
        try:
            yield
        except (VolumeFailed, VolumeUnavailable, StoreClosed) as error:
            self.failed(slot, store, error)

    def failed(self, slot: int, store: ShardStore, error: StorageError) -> None:
        """Take a store offline that raised this error, unless the error is temporary.

        Raises the error again if it is not an error of the store.
        """
        if isinstance(error, VolumeUnavailable):
            self.note_unavailable(slot, str(error))
        elif isinstance(error, VolumeFailed):
            self.set_offline(slot, str(error), store)
        elif self._stores.get(slot) is store or not isinstance(error, StoreClosed):
            raise error  # otherwise the store was abandoned meanwhile

    def could_not_read(self, slot: int, store: ShardStore, error: Exception) -> None:
        """A store raised this error instead of giving a shard, which says nothing about the shard."""
        if isinstance(error, VolumeFailed):
            self.set_offline(slot, str(error), store)
        else:
            self.note_unavailable(slot, str(error))

    def note_unavailable(self, slot: int, reason: str) -> None:
        """Note that a store temporarily refused a request."""
        if self._reasons.get(slot) != reason:
            log.warning("volume %s: %s", self.name(slot), reason)
            self._reasons[slot] = reason
            self.report("unavailable", b"", slot, reason)

    def report(self, kind: str, key: bytes, slot: int, text: str) -> None:
        """Record damage, for statistics and operators."""
        self.recent_damage.append(
            Damage(
                time_ms=self._now_ms(),
                kind=kind,
                object_id=object_id_of(key).hex(),
                slot=slot_of(key) if len(key) > 35 else -1,
                volume=slot,
                text=text,
            )
        )

    def note_whole(self, slots: Collection[int], since: tuple[int, ...]) -> None:
        """Note that since that :meth:`epoch`, everything that belongs on these stores was found there or written.

        A store that came, went or refused something meanwhile may still lack something.
        """
        with self._lock:
            now = self.epoch()
            if now == since:
                self.incomplete.difference_update(slots)

    def note_write_refused(self, slot: int, error: StorageError) -> None:
        """Note that a store failed to make shards durable; every writer that used it checks what is missing."""

    def note_lie(self, slot: int, key: bytes, text: str) -> None:
        """Note that a store was proved to have lied."""
        self.report("lie", key, slot, text)

    def note_unread(self, slot: int) -> None:
        """Note that a store claims to hold a shard, but cannot read it now."""

    def note_made(self, slot: int, size: int) -> None:
        """Note that ``size`` bytes of missing shards were rebuilt on a store."""

    def trusts(self, slot: int) -> bool:
        """Whether a store's claims about its shards are trusted."""
        return True

    @abstractmethod
    def reattach(self) -> list[int]:
        """Try to reopen offline stores; returns the slots that are back."""

    def revive(self) -> bool:
        """Reopen offline stores whose next attempt is due; True if one is back. Others come back by themselves."""
        return False

    @abstractmethod
    def check_present(self, *, at_once: bool = False) -> None:
        """Detect stores that were removed."""

    # -- writing ---------------------------------------------------------------------------------

    @abstractmethod
    def append(self, batches: dict[int, list[Shard]], *, urgent: bool = False) -> Collection[int]:
        """Append each store's shards. Stores that are away, full or refuse are left out, or others stand in for them.

        Returns:
            The stores whose shards were written nowhere (see :meth:`require_writable`).

        Raises:
            StoreFull: others could stand in, but too few of them have space.
        """

    @abstractmethod
    def sync(self) -> None:
        """Sync all online stores in parallel."""

    def append_and_sync(self, batches: dict[int, list[Shard]]) -> Mapping[int, Sequence[Shard]]:
        """:meth:`append`, then :meth:`sync`; or, for what was appended before, :meth:`sync_most`.

        Returns:
            By slot, those of the shards that stores have confirmed to be durable there; none, if stores do not say so.
        """
        self.append(batches)
        self.sync()
        return {}

    @abstractmethod
    def sync_each(self) -> None:
        """Sync all online stores at low priority, leaving the fast path to commits."""

    def sync_most(self) -> None:
        """Like :meth:`sync_each`, but others may stand in for a store that takes too long.

        If so, the :meth:`epoch` changes, and what was appended has to be made whole (:mod:`storage.write.redundancy`).
        """
        self.sync_each()

    def makers(self) -> Collection[int]:
        """Slots of the stores that can :meth:`make` shards now, and whose word for it is taken; none by default."""
        return ()

    def make(self, orders: Mapping[int, Sequence[Order]]) -> Mapping[ShardKey, bytes]:
        """Let :meth:`makers` make shards by themselves from those of others, so that no payload passes through here.

        A store verifies each object before it makes shards of it. The shards are not durable before the next
        :meth:`sync`.

        Args:
            orders: what to make, by the slot of the store that shall have it.

        Returns:
            The BLAKE3 hash of each shard that was made and appended, by the word of its store. Nothing is proved about
            those that are left out, nor about anybody: the caller makes them in another way.
        """
        return {}

    def alike(self, keys: Sequence[ShardKey], one: int, other: int) -> Collection[ShardKey]:
        """The shards that two stores prove to have with the same content, without sending it; none by default."""
        return ()

    def epoch(self) -> tuple[int, ...]:
        """A value from which :meth:`require_writable` can later tell which stores were offline at any time since."""
        return tuple(self._moves.values())

    def lasts(self, since: tuple[int, ...]) -> bool:
        """Whether all that was written since that :meth:`epoch` still counts where it was written then.

        It may belong elsewhere now, and be moved there by a repair (:meth:`note_committed`).
        """
        return since == self.epoch()

    def keeps(self, since: tuple[int, ...]) -> bool:
        """Like :meth:`lasts`, of what was durable in that :meth:`epoch`: also if stores became slow since."""
        return self.lasts(since)

    def note_committed(self, since: tuple[int, ...]) -> None:
        """Note that a push was committed whose first part was written in that :meth:`epoch`, and that lasts since."""

    def await_change(self, since: tuple[int, ...], within_s: float) -> bool:
        """Wait for a store that went away less than ``within_s`` seconds ago to come back.

        Returns:
            Whether a store came or went since that :meth:`epoch`.
        """
        while self.epoch() == since:
            if self._closed or self._clock_s() - self._lost_at_s >= within_s:
                return False
            time.sleep(_LOOK_S)
        return True

    @abstractmethod
    def require_writable(self, profile: ErasureProfile, since: tuple[int, ...] | None = None) -> None:
        """Refuse a commit if one more loss could make its data unreadable.

        Args:
            profile: erasure profile of the data.
            since: the :meth:`epoch` when its first part was written. A store that was away, or refused
                something, since then may lack shards, and waits for repair.

        Raises:
            InsufficientWorkers: too many stores are, or were, offline or refusing.
            StoreFull: the same, and some of them have no space.
            StoreClosed: the stores are being closed, and some may have skipped the data.
        """

    def require_taken(self, profile: ErasureProfile, since: tuple[int, ...]) -> None:
        """Refuse data that :meth:`require_writable` would already refuse to commit, before more of it is accepted."""

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
                    # Nothing acknowledged depends on this flush: reopening replays the segments.
                    log.error("volume %s could not be closed: %s", self.name(slot), error)

"""Heal: repairs stripes in the background that a read found damaged."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import islice
from typing import Protocol

from storage.errors import DataLossError, StorageError
from storage.keys import StripeKey, object_id_of
from storage.reports import HealingState
from storage.runtime import Runtime
from storage.stripes.recovery import Unread
from storage.stripes.stripes import StripeStore

log = logging.getLogger(__name__)

_WAITING_MAX = 10_000  # further damage is left to repair
_TOGETHER = 8  # stripes that only lack shards: read together, and synced together


class Pace(Protocol):
    """Decides when healing that is not urgent runs, to give way to users."""

    def lull(self, is_over: Callable[[], bool]) -> None:
        """Wait until users pause, ``is_over`` returns true, or the wait has been long enough."""

    def rest(self, worked_s: float) -> None:
        """Pause after ``worked_s`` seconds of work, to leave resources for users."""


class Unpaced:
    """A ``Pace`` that never waits."""

    def lull(self, is_over: Callable[[], bool]) -> None:
        """See ``Pace``."""

    def rest(self, worked_s: float) -> None:
        """See ``Pace``."""


class Healer:
    """Heals stripes when damage is reported, corrupt ones first. Thread-safe.

    Stripes that lack shards because stores are away are reported as fast as users read. They are not urgent, so healing
    them gives way to users.

    Args:
        stripes: reads and writes the stripes.
        runtime: provides the thread.
        is_needed: whether a stripe is still needed; one that was collected meanwhile is not lost.

    Attributes:
        pace: how it gives way to users.
    """

    def __init__(
        self, stripes: StripeStore, runtime: Runtime, is_needed: Callable[[StripeKey], bool] = lambda stripe: True
    ) -> None:
        self._is_needed = is_needed
        self.pace: Pace = Unpaced()
        self._stripes = stripes
        self._runtime = runtime
        self._thread = runtime.executor(1, "healer")
        self._rotten: dict[StripeKey, None] = {}
        self._lacking: dict[StripeKey, None] = {}
        self._lull_due = False
        self._at_hand = 0
        self._healed_shards = 0
        self._failed_stripes = 0
        self._ended_ms = 0
        self._lock = threading.Lock()
        self._closed = False

    def state(self) -> HealingState:
        """The progress of healing."""
        with self._lock:
            waiting = len(self._rotten) + len(self._lacking) + self._at_hand
            return HealingState(waiting, self._healed_shards, self._failed_stripes, self._ended_ms)

    def request(self, stripe: StripeKey) -> None:
        """Request that a stripe with corrupt shards is healed soon; repeated requests have no effect while it waits."""
        with self._lock:
            self._lacking.pop(stripe, None)
            asked = self._ask(self._rotten, stripe)
        if asked:
            self._wake()

    def request_missing(self, stripe: StripeKey) -> None:
        """Request that a stripe that lacks shards is healed when there is time."""
        with self._lock:
            first = not (self._lacking or self._at_hand)
            asked = stripe not in self._rotten and self._ask(self._lacking, stripe)
            self._lull_due = self._lull_due or (asked and first)
        if asked:
            self._wake()

    def _ask(self, waiting: dict[StripeKey, None], stripe: StripeKey) -> bool:
        if self._closed or stripe in waiting or len(self._rotten) + len(self._lacking) >= _WAITING_MAX:
            return False
        waiting[stripe] = None
        return True

    def _wake(self) -> None:
        try:
            self._thread.submit(self._heal).add_done_callback(_tell_fault)
        except RuntimeError:
            log.debug("the damage is not healed, as the store was closed meanwhile")

    def drain(self) -> None:
        """Wait until all requests so far have been handled."""
        if not self._closed:
            self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Stop after the current stripe."""
        with self._lock:
            self._closed = True
        self._thread.shutdown(cancel_futures=True)

    def _heal(self) -> None:
        """Heal some of the waiting stripes, if any are left."""
        self._await_lull()
        with self._lock:
            waiting, most = (self._rotten, 1) if self._rotten else (self._lacking, _TOGETHER)
            group = list(islice(waiting, most))
            for stripe in group:
                del waiting[stripe]
            self._at_hand = len(group)
        if not group:
            return
        began_s = time.perf_counter()
        try:
            made = self._stripes.heal_all(group)
            self._stripes.volumes.sync_each()
        except StorageError as error:
            log.warning("healing %d stripes failed, and is left to repair: %s", len(group), error)
            self._count(0, len(group))
        else:
            lost = 0
            for stripe, one in zip(group, made, strict=True):
                lost += self._tell(stripe, one)
            self._count(sum(one[0] for one in made if not isinstance(one, StorageError)), lost)
        finally:
            with self._lock:
                self._at_hand = 0
        if most > 1:
            self.pace.rest(time.perf_counter() - began_s)

    def _await_lull(self) -> None:
        """Wait before healing stripes that lack shards: a user who has read one usually goes on reading."""
        with self._lock:
            if self._rotten or not self._lull_due:
                return
            self._lull_due = False
        self.pace.lull(lambda: bool(self._rotten) or self._closed)

    def _count(self, healed_shards: int, failed_stripes: int) -> None:
        with self._lock:
            self._healed_shards += healed_shards
            self._failed_stripes += failed_stripes
            self._ended_ms = self._runtime.wall_ms()

    def _tell(self, stripe: StripeKey, made: tuple[int, int] | Unread) -> bool:
        """Log the outcome for a stripe; return whether it is lost."""
        if isinstance(made, DataLossError):
            if not self._is_needed(stripe):
                return False
            self._stripes.volumes.report("lost", stripe, -1, str(made))
            return True
        if isinstance(made, StorageError):
            log.info("%s is not healed for now: %s", object_id_of(stripe).hex(), made)
        elif made[0]:
            log.info("healed %d shards of %s", made[0], object_id_of(stripe).hex())
        return False


def _tell_fault(healed: Future[None]) -> None:
    if not healed.cancelled() and (error := healed.exception()) is not None:
        log.error("healing failed unexpectedly", exc_info=error)

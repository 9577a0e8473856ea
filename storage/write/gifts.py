"""Gives volumes something, all at the same time, so that nobody waits for one that is slow to take it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field

from storage.errors import StoreClosed, StoreUnavailable
from storage.submitting import submitted

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Gift:
    """Something on its way to a volume.

    Attributes:
        given: whether the volume has it.
        ended: what it replaces is removed there as well.
    """

    given: Future[bool] = field(default_factory=Future)
    ended: Future[None] = field(default_factory=Future)


class Gifts:
    """Gives the newest of something to volumes. Thread-safe.

    Args:
        give: gives it to the volume of a slot. It completes ``given`` as soon as it is known, and returns once
            ``ended`` is so.
        threads: give it to volumes that are far away; None: the calling thread gives it.
    """

    def __init__(self, give: Callable[[int, Gift], None], threads: Executor | None) -> None:
        self._give = give
        self._threads = threads
        self._lock = threading.Lock()  # guards the next two
        self._giving: set[int] = set()  # slots of the volumes that are given something
        self._next: dict[int, Gift] = {}  # by slot: what such a volume is given after that

    @property
    def is_giving(self) -> bool:
        """Whether a volume is being given something."""
        return bool(self._giving)

    def begin(self, slot: int) -> Gift:
        """Have a volume given the newest. While it is given an earlier one, one further gift waits for all."""
        if self._threads is None:
            gift = Gift()
            self._give_one(slot, gift)
            return gift
        with self._lock:
            waiting = self._next.get(slot)
            if waiting is not None:
                return waiting
            gift = self._next[slot] = Gift()
            if slot in self._giving:
                return gift
            self._giving.add(slot)
        try:
            submitted("the store is closed", self._threads, self._give_all, slot)
        except (StoreClosed, StoreUnavailable) as error:  # it never runs
            with self._lock:
                self._giving.discard(slot)
                self._next.pop(slot, None)
            gift.given.set_exception(error)
            gift.ended.set_result(None)
        return gift

    def _give_all(self, slot: int) -> None:
        while True:
            with self._lock:
                gift = self._next.pop(slot, None)
                if gift is None:
                    self._giving.discard(slot)
                    return
            self._give_one(slot, gift)

    def _give_one(self, slot: int, gift: Gift) -> None:
        try:
            self._give(slot, gift)
        except Exception as error:
            if gift.given.done():
                log.exception("former copies of the users' keys on volume %d remain", slot)
            else:
                gift.given.set_exception(error)
        finally:
            if not gift.given.done():  # the thread is being ended
                gift.given.set_result(False)
            gift.ended.set_result(None)


def count(given: Iterable[Future[bool]], enough: int) -> int:
    """How many of these turn out true, or ``enough`` as soon as so many do."""
    there = 0
    for one in as_completed(given):
        there += one.result()
        if there >= enough:
            break
    return there

"""Uploads that have claims in the catalog: which are under way, and how long an interrupted one may be taken up again.

An upload gets its number when its first claims are entered, in the same transaction. A collect keeps what
uploads under way claim, and what interrupted ones do until their grace has passed. Grace is counted in the
store's own time: the seconds for which it was open, kept in the catalog. The wall clock has no part in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from storage.catalog import Catalog, CatalogTransaction
from storage.catalog.port import LEASES_BEFORE, StoreTime, UploadRecord

_INTERRUPTED_MAX = 10_000  # of which records are kept; beyond it, what has waited longest lapses
_JUST_NOW_S = 60.0  # before the store was closed: whoever was cut off by that counts as under way until then


@dataclass(frozen=True, slots=True)
class KeptUploads:
    """Which uploads' claims a collect has to honour.

    Attributes:
        last: number of the latest upload when the collect began; later ones are kept.
        numbers: the earlier ones that are.
    """

    last: int
    numbers: frozenset[int]

    def keep(self, uploads: tuple[int, ...]) -> bool:
        """Whether a claim of these uploads is to stay."""
        return any(number > self.last or number in self.numbers for number in uploads)


class Uploads:
    """The uploads of one store. Thread-safe.

    Args:
        catalog: where they are kept.
        clock_s: monotonic seconds.
        opening_s: what having been opened counts for, in seconds of the store's time: a store that is used
            from the command line is never open for long.

    Attributes:
        resume_s: after an opening, for how many seconds uploads that the end of the process before cut off
            are kept in any case; for stores whose senders are elsewhere, and come back.
    """

    def __init__(self, catalog: Catalog, clock_s: Callable[[], float], *, opening_s: float = 0.0) -> None:
        self.resume_s = 0.0
        self._catalog = catalog
        self._clock_s = clock_s
        self._lock = threading.Lock()
        before = catalog.store_time() or StoreTime()
        records = catalog.uploads()
        self._opened_s = clock_s()
        self._base_s = before.open_s + opening_s
        self._last = max([before.last_upload, *records])
        self._live: set[int] = set()
        self._interrupted: dict[int, float] = {}  # by number, when, in the store's time
        self._cut_off: set[int] = set()  # those of them that the end of the process before ended
        self._unkept: set[int] = set()  # numbers whose records in the catalog are not as they are here
        for number, record in records.items():
            self._take_over(number, record, before.open_s)
        if not before.format and catalog.claims():
            # Its claims are of the format before, with a time of the wall clock each: all count as interrupted now.
            self._take_over(LEASES_BEFORE, UploadRecord(), before.open_s)

    def _take_over(self, number: int, record: UploadRecord, closed_s: float) -> None:
        """An upload of a process that has ended."""
        since_s = record.interrupted_s
        if since_s is None or closed_s - since_s < _JUST_NOW_S:
            self._cut_off.add(number)
        if since_s is None:
            self._unkept.add(number)
        self._interrupted[number] = self._base_s if since_s is None else since_s

    def now_s(self) -> float:
        """The store's own time: seconds for which it was open."""
        return self._base_s + self._clock_s() - self._opened_s

    # -- one upload ------------------------------------------------------------------------------

    def begin(self) -> int:
        """A number for an upload that is about to claim something."""
        with self._lock:
            self._last += 1
            self._live.add(self._last)
            return self._last

    def enter(self, txn: CatalogTransaction, number: int) -> None:
        """Keep an upload, along with its first claims."""
        txn.keep_upload(number, UploadRecord())
        self._enter_time(txn)

    def interrupt(self, txn: CatalogTransaction, number: int) -> None:
        """Keep it as interrupted; then call :meth:`interrupted`."""
        txn.keep_upload(number, UploadRecord(self.now_s()))
        self._enter_time(txn)

    def interrupted(self, number: int) -> None:
        """It was interrupted, and its claims wait for their sender."""
        with self._lock:
            self._live.discard(number)
            self._interrupted[number] = self.now_s()
            if len(self._interrupted) > _INTERRUPTED_MAX:
                self._lapse(min(self._interrupted, key=lambda one: self._interrupted[one]))

    def ended(self, number: int) -> None:
        """It was committed, or given up."""
        with self._lock:
            self._live.discard(number)

    # -- all of them -----------------------------------------------------------------------------

    def kept(self, grace_s: float) -> KeptUploads:
        """Which uploads a collect that begins now has to honour; ask before it reads the first version.

        Those whose grace has passed lapse, for good.

        Args:
            grace_s: how long interrupted ones are kept.
        """
        with self._lock:
            now_s = self.now_s()
            resuming = self._cut_off if self._clock_s() - self._opened_s < self.resume_s else set()
            for number, since_s in list(self._interrupted.items()):
                if now_s - since_s >= grace_s and number not in resuming:
                    self._lapse(number)
            return KeptUploads(self._last, frozenset(self._live | self._interrupted.keys()))

    def keep(self) -> None:
        """Bring the catalog up to date, unless nothing hangs on the store's time.

        Raises:
            StoreFull: no space; it is done another time.
        """
        with self._lock:
            changed = {number: self._interrupted.get(number) for number in self._unkept}
            if not changed and not self._interrupted:
                return

        def work(txn: CatalogTransaction) -> None:
            self._enter_time(txn)
            for number, since_s in changed.items():
                if since_s is None:
                    txn.end_upload(number)
                else:
                    txn.keep_upload(number, UploadRecord(since_s))

        self._catalog.transact(work)
        with self._lock:
            self._unkept -= {number for number, since_s in changed.items() if self._interrupted.get(number) == since_s}

    def _lapse(self, number: int) -> None:
        del self._interrupted[number]
        self._cut_off.discard(number)
        self._unkept.add(number)

    def _enter_time(self, txn: CatalogTransaction) -> None:
        # Not before the record of those before is kept as well.
        converted = LEASES_BEFORE not in self._unkept
        txn.set_store_time(StoreTime(self.now_s(), self._last, int(converted)))

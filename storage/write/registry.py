"""Uploads with claims in the catalog: which are under way, and how long interrupted ones are kept.

An upload gets its number when its first claims are entered, in the same transaction. A collect keeps the chunks claimed
by uploads under way, and those of interrupted uploads until their grace period has passed. The period is measured in
the store's own time: the seconds for which the store was open, kept in the catalog. The wall clock is not used.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from storage.catalog import Catalog, CatalogTransaction
from storage.catalog.port import LEASES_BEFORE, StoreTime, UploadRecord

_INTERRUPTED_MAX = 10_000  # records of interrupted uploads to keep; beyond that, the oldest one lapses
_JUST_NOW_S = 60.0  # uploads interrupted this shortly before the process ended count as cut off by its end


@dataclass(frozen=True, slots=True)
class KeptUploads:
    """The uploads whose claims a collect has to keep.

    Attributes:
        last: number of the latest upload when the collect began; all later ones are kept.
        numbers: the earlier ones to keep.
    """

    last: int
    numbers: frozenset[int]

    def keep(self, uploads: tuple[int, ...]) -> bool:
        """Whether a claim of these uploads has to be kept."""
        return any(number > self.last or number in self.numbers for number in uploads)


class Uploads:
    """The uploads of one store. Thread-safe.

    Args:
        catalog: catalog with their records.
        clock_s: monotonic clock, in seconds.
        opening_s: seconds to add to the store's time at each opening, as a store used from the command line is never
            open for long.

    Attributes:
        collects: how many collects have begun.
        resume_s: for how many seconds after an opening to keep uploads that were cut off by the end of the previous
            process, whatever their grace period. For stores with remote senders, which may come back.
    """

    def __init__(self, catalog: Catalog, clock_s: Callable[[], float], *, opening_s: float = 0.0) -> None:
        self.collects = 0
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
        self._interrupted: dict[int, UploadRecord] = {}  # with when that was
        self._waiting_bytes: Counter[bytes] = Counter()  # what these take, by user
        self._of_file: defaultdict[tuple[bytes, bytes], set[int]] = defaultdict(set)  # those that take something
        self._cut_off: set[int] = set()  # those interrupted by the end of the previous process
        self._unkept: set[int] = set()  # numbers whose records in the catalog are out of date
        for number, record in records.items():
            self._take_over(number, record, before.open_s)
        if not before.format and catalog.claims():
            # Claims in the former format have wall clock times: all of them count as interrupted now.
            self._take_over(LEASES_BEFORE, UploadRecord(), before.open_s)

    def _take_over(self, number: int, record: UploadRecord, closed_s: float) -> None:
        """Take over an upload of a process that has ended."""
        since_s = record.interrupted_s
        if since_s is None or closed_s - since_s < _JUST_NOW_S:
            self._cut_off.add(number)
        if since_s is None:
            self._unkept.add(number)
            record = msgspec.structs.replace(record, interrupted_s=self._base_s)
        self._wait(number, record)

    def now_s(self) -> float:
        """Return the store's own time: the seconds for which it was open."""
        return self._base_s + self._clock_s() - self._opened_s

    # -- one upload ------------------------------------------------------------------------------

    def begin(self) -> int:
        """Return a number for an upload that is about to enter its first claims."""
        with self._lock:
            self._last += 1
            self._live.add(self._last)
            return self._last

    def enter(self, txn: CatalogTransaction, number: int, record: UploadRecord) -> None:
        """Enter the record of an upload, in the transaction of its claims."""
        txn.keep_upload(number, record)
        self._enter_time(txn)

    def interrupted(self, number: int, record: UploadRecord) -> None:
        """Note that an upload was interrupted, and entered as such. Its claims are kept for its sender."""
        with self._lock:
            self._live.discard(number)
            self._wait(number, record)
            if len(self._interrupted) > _INTERRUPTED_MAX:
                self._lapse(min(self._interrupted, key=self._since_s))

    def waiting_bytes(self, user: bytes) -> int:
        """Return what the interrupted uploads of a user take, whose claims are kept."""
        with self._lock:
            return self._waiting_bytes[user]

    def resumed(self, user: bytes, name: bytes) -> int:
        """Let the interrupted uploads of a file lapse, as it was stored; return how many bytes they had taken.

        What they wrote is a part of the file now, or left over.
        """
        with self._lock:
            numbers = list(self._of_file.get((user, name), ()))
            taken = sum(self._interrupted[number].taken for number in numbers)
            for number in numbers:
                self._lapse(number)
            return taken

    def ended(self, number: int) -> None:
        """Note that an upload was committed or given up."""
        with self._lock:
            self._live.discard(number)

    # -- all of them -----------------------------------------------------------------------------

    def kept(self, grace_s: float) -> KeptUploads:
        """Return the uploads to keep in a collect that begins now. Call before the collect reads the first version.

        Interrupted uploads whose grace period has passed lapse permanently.

        Args:
            grace_s: how long to keep interrupted uploads, in seconds.
        """
        with self._lock:
            self.collects += 1
            now_s = self.now_s()
            resuming = self._cut_off if self._clock_s() - self._opened_s < self.resume_s else set()
            for number in list(self._interrupted):
                if now_s - self._since_s(number) >= grace_s and number not in resuming:
                    self._lapse(number)
            return KeptUploads(self._last, frozenset(self._live | self._interrupted.keys()))

    def keep(self) -> None:
        """Bring the catalog's records and the store's time up to date, if there are uploads that need it.

        Raises:
            StoreFull: there is no space; a later call does it.
        """
        with self._lock:
            changed = {number: self._interrupted.get(number) for number in self._unkept}
            if not changed and not self._interrupted:
                return

        def work(txn: CatalogTransaction) -> None:
            self._enter_time(txn)
            for number, record in changed.items():
                if record is None:
                    txn.end_upload(number)
                else:
                    txn.keep_upload(number, record)

        self._catalog.transact(work)
        with self._lock:
            self._unkept -= {number for number, record in changed.items() if self._interrupted.get(number) == record}

    def _since_s(self, number: int) -> float:
        return self._interrupted[number].interrupted_s or 0.0

    def _lapse(self, number: int) -> None:
        self._forget(number)
        self._cut_off.discard(number)
        self._unkept.add(number)

    def _wait(self, number: int, record: UploadRecord) -> None:
        self._interrupted[number] = record
        if record.taken:
            self._waiting_bytes[record.user] += record.taken
            self._of_file[record.user, record.name].add(number)

    def _forget(self, number: int) -> UploadRecord:
        record = self._interrupted.pop(number)
        if record.taken:
            self._waiting_bytes[record.user] -= record.taken
            if not self._waiting_bytes[record.user]:
                del self._waiting_bytes[record.user]
            of_file = self._of_file[record.user, record.name]
            of_file.discard(number)
            if not of_file:
                del self._of_file[record.user, record.name]
        return record

    def _enter_time(self, txn: CatalogTransaction) -> None:
        # The format only counts as converted once the record for former claims is in the catalog.
        converted = LEASES_BEFORE not in self._unkept
        txn.set_store_time(StoreTime(self.now_s(), self._last, int(converted)))

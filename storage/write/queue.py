"""Versions that wait for their commit, and which of the waiting threads commits them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from storage.errors import StorageError
from storage.write.pending import PendingVersion

BATCH_MAX = 256
_GATHER_S = 0.001  # hardly longer than the commit of one version takes on a local disk


class CommitQueue:
    """Hands versions to a function in batches. The first thread to arrive leads: it calls the function for the others.

    A batch is whatever waits when the one before it has ended. The threads whose versions were in that batch are only
    returning to their callers at that moment, and those that push again would miss the next batch: then every other
    batch would have a single version. So a leader waits for as many threads as were in the batch that has just ended,
    but for a millisecond at most. A thread that pushed alone waits for nobody.

    Thread-safe.

    Args:
        commit: commits a batch, and settles each of its versions.
        clock_s: monotonic seconds.
    """

    def __init__(self, commit: Callable[[list[PendingVersion]], None], clock_s: Callable[[], float]) -> None:
        self._commit = commit
        self._clock_s = clock_s
        self._mutex = threading.Lock()
        self._queue: list[PendingVersion] = []
        self._leader: PendingVersion | None = None
        self._arrived = 0  # threads whose versions wait
        self._companions = 1  # threads whose versions were in the latest batch
        self._ended_s = float("-inf")  # when that batch ended
        self._gathered: threading.Lock | None = None  # released when that many threads have arrived

    def __len__(self) -> int:
        return len(self._queue)

    def commit_all(self, pending: Sequence[PendingVersion]) -> None:
        """Put versions into the queue, and wait until all are settled. Raises no error of a commit."""
        if not pending:
            return
        with self._mutex:
            self._queue += pending
            self._arrived += 1
            if self._leader is None:
                self._leader = pending[0]
            leads = self._leader is pending[0]
            if self._gathered is not None and self._arrived >= self._companions:
                self._gathered.release()
                self._gathered = None
        try:
            for one in pending:
                if not leads:
                    one.wait()
                if not one.settled:
                    self._lead(one)
                leads = False
        except BaseException:
            self._withdraw(pending)
            raise

    def _withdraw(self, pending: Sequence[PendingVersion]) -> None:
        """Take an interrupted thread's versions out of the queue. If one of them was to lead, another one leads."""
        withdrawn = set(pending)
        with self._mutex:
            self._queue = [queued for queued in self._queue if queued not in withdrawn]
            successor = self._succeed() if self._leader in withdrawn else None
        if successor is not None:
            successor.wake()

    def _succeed(self) -> PendingVersion | None:
        """Make the first in the queue the leader. The caller holds the mutex, and wakes the new leader afterwards."""
        self._leader = self._queue[0] if self._queue else None
        return self._leader

    def _lead(self, leader: PendingVersion) -> None:
        batch: list[PendingVersion] = []
        threads = 1
        try:
            self._gather()
            with self._mutex:
                batch, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
                threads, self._arrived = self._arrived, min(len(self._queue), 1)
            batch = self._prepared(batch, leader)
            if batch:
                self._commit(batch)
        except BaseException as error:
            outcome = error if isinstance(error, Exception) else StorageError("the commit was interrupted; try again")
            for pending in batch:
                if not pending.settled:
                    pending.settle(outcome)
            if not isinstance(error, Exception):
                raise
        finally:
            with self._mutex:
                self._companions, self._ended_s = threads, self._clock_s()
                successor = self._succeed()
            for pending in batch:
                if pending is not leader:
                    pending.wake()
            if successor is not None:
                successor.wake()

    def _gather(self) -> None:
        """Wait for the threads whose versions were in the batch that has just ended."""
        gathered = threading.Lock()
        with self._mutex:
            if self._arrived >= self._companions or self._clock_s() - self._ended_s > _GATHER_S:
                return
            gathered.acquire()
            self._gathered = gathered
        gathered.acquire(timeout=_GATHER_S)
        with self._mutex:
            self._gathered = None

    def _prepared(self, batch: Sequence[PendingVersion], leader: PendingVersion) -> list[PendingVersion]:
        """Prepare each version, and return those that can be committed. The threads of the others wait no longer."""
        prepared = []
        for pending in batch:
            try:
                pending.prepare()
            except Exception as error:
                pending.settle(error)
            else:
                prepared.append(pending)
        if len(prepared) < len(batch):
            for pending in batch:
                if pending.settled and pending is not leader:
                    pending.wake()
        return prepared

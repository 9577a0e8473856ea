"""Pins that keep collect from deleting what pushes and open readers count on."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from storage.keys import StripeKey


class Pins:
    """Counted pins. What is not pinned is removed in a :meth:`removing` block, with no lock held.

    Never pin inside a catalog transaction: it would wait for such a block, which may wait for the catalog.

    Whoever counts on a stripe pins it first and only then looks whether it is there. While a collect
    runs, pins outlast their owners: its picture of what is live is older than their commits.

    ``removals`` grows with everything that a collect takes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._removed = threading.Condition(self._lock)
        self._removing: frozenset[StripeKey] = frozenset()
        self.removals = 0
        self._counts: dict[StripeKey, int] = {}
        self._deferred: list[StripeKey] | None = None

    def pin(self, stripe: StripeKey) -> None:
        """Count on a stripe until :meth:`unpin`; waits while that very one is being removed."""
        with self._lock:
            while stripe in self._removing:
                self._removed.wait()
            self._counts[stripe] = self._counts.get(stripe, 0) + 1

    def unpin(self, stripes: Iterable[StripeKey]) -> None:
        """Give back one pin for each of ``stripes``; takes effect after a running collect."""
        with self._lock:
            if self._deferred is not None:
                self._deferred.extend(stripes)
            else:
                self._release(stripes)

    def pinned(self, stripe: StripeKey) -> bool:
        """Whether a stripe is pinned."""
        with self._lock:
            return stripe in self._counts

    @contextmanager
    def removing(self, stripes: Iterable[StripeKey]) -> Iterator[frozenset[StripeKey]]:
        """Remove, in the block, those stripes that it yields: the ones that are not pinned. For one thread at a time.

        Whoever would count on one of them waits until the end of the block, and nobody else: a store that is slow
        to remove holds up no other push.
        """
        with self._lock:
            free = self._removing = frozenset(stripe for stripe in stripes if stripe not in self._counts)
        try:
            yield free
        finally:
            with self._lock:
                self._removing = frozenset()
                self._removed.notify_all()

    @property
    def holds_up(self) -> bool:
        """Whether somebody who pins something now might wait."""
        return bool(self._removing) or self._lock.locked()

    @contextmanager
    def kept_during_collect(self) -> Iterator[None]:
        """Keep every pin made before or during the block until its end."""
        with self._lock:
            self._deferred = []
        try:
            yield
        finally:
            with self._lock:
                deferred, self._deferred = self._deferred or [], None
                self._release(deferred)

    def _release(self, stripes: Iterable[StripeKey]) -> None:
        for stripe in stripes:
            count = self._counts[stripe] - 1
            if count:
                self._counts[stripe] = count
            else:
                del self._counts[stripe]


class Readings:
    """Files that are open for reading: deleted meanwhile, they stay readable until closed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a forgotten reader may be closed by the garbage collector at any point
        self._counts: Counter[bytes] = Counter()

    def begin(self, file_id: bytes) -> Callable[[], None]:
        """Note a reader of a file; call what is returned once it is done (again does nothing)."""
        with self._lock:
            self._counts[file_id] += 1
        ended = False

        def end() -> None:
            nonlocal ended
            with self._lock:
                if not ended:
                    ended = True
                    self._counts -= Counter((file_id,))

        return end

    def __contains__(self, file_id: object) -> bool:
        with self._lock:
            return file_id in self._counts

"""Pins that keep collect from deleting chunks in use by pushes, and files in use by open readers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from storage.keys import StripeKey


class Pins:
    """Counted pins on stripes. Thread-safe.

    A push pins a stripe before it checks whether the stripe is stored. A collect removes unpinned stripes in a
    :meth:`removing` block, without holding a lock. While a collect runs, released pins stay in effect, because the
    collect determined the live stripes before the pushes committed.

    Never pin inside a catalog transaction: it would wait for a `removing` block, which may wait for the catalog.

    Attributes:
        removals: grows with everything that a collect removes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._removed = threading.Condition(self._lock)
        self._removing: frozenset[StripeKey] = frozenset()
        self.removals = 0
        self._counts: dict[StripeKey, int] = {}
        self._deferred: list[StripeKey] | None = None

    def pin(self, stripe: StripeKey) -> None:
        """Keep a stripe from being removed until :meth:`unpin`. Waits while this stripe is being removed."""
        with self._lock:
            while stripe in self._removing:
                self._removed.wait()
            self._counts[stripe] = self._counts.get(stripe, 0) + 1

    def unpin(self, stripes: Iterable[StripeKey]) -> None:
        """Release one pin for each of ``stripes``; during a collect, only after its end."""
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
        """Yield those of ``stripes`` that are not pinned, to be removed in the block. One thread at a time.

        Only pins on these stripes wait until the end of the block, so that slow removals do not delay other pushes.
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
        """Whether a call of `pin` might wait now."""
        return bool(self._removing) or self._lock.locked()

    @contextmanager
    def kept_during_collect(self) -> Iterator[None]:
        """Keep all pins made before or during the block until its end."""
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
    """Files that are open for reading. They stay readable until they are closed, even if they are deleted."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: the garbage collector may close a reader at any point
        self._counts: dict[bytes, int] = {}

    def begin(self, file_id: bytes) -> Callable[[], None]:
        """Note a reader of a file. Call the returned function when it is closed; further calls do nothing."""
        with self._lock:
            self._counts[file_id] = self._counts.get(file_id, 0) + 1
        ended = False

        def end() -> None:
            nonlocal ended
            with self._lock:
                if not ended:
                    ended = True
                    count = self._counts.pop(file_id) - 1
                    if count:
                        self._counts[file_id] = count

        return end

    def __contains__(self, file_id: object) -> bool:
        with self._lock:
            return file_id in self._counts

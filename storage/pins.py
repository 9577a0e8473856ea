"""Pins: stripes that unfinished pushes count on, which a collect running beside them must not take."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from storage.keys import StripeKey


class Pins:
    """Counted pins. Hold ``lock`` while removing what is not pinned.

    Commits pin inside their catalog transaction: never begin one with ``lock`` held.

    Whoever counts on a stripe pins it first and only then looks whether it is there. While a collect
    runs, pins outlast their owners: its picture of what is live is older than their commits.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._counts: dict[StripeKey, int] = {}
        self._deferred: list[StripeKey] | None = None

    def pin(self, stripe: StripeKey) -> None:
        """Count on a stripe until :meth:`unpin`."""
        with self.lock:
            self._counts[stripe] = self._counts.get(stripe, 0) + 1

    def unpin(self, stripes: Iterable[StripeKey]) -> None:
        """Give back one pin for each of ``stripes``; takes effect after a running collect."""
        with self.lock:
            if self._deferred is not None:
                self._deferred.extend(stripes)
            else:
                self._release(stripes)

    def held(self, stripe: StripeKey) -> bool:
        """Whether a stripe is pinned; call with ``lock`` held."""
        return stripe in self._counts

    def pinned(self, stripe: StripeKey) -> bool:
        """Like :meth:`held`, taking ``lock`` itself."""
        with self.lock:
            return stripe in self._counts

    @contextmanager
    def kept_during_collect(self) -> Iterator[None]:
        """Keep every pin made before or during the block until its end."""
        with self.lock:
            self._deferred = []
        try:
            yield
        finally:
            with self.lock:
                deferred, self._deferred = self._deferred or [], None
                self._release(deferred)

    def _release(self, stripes: Iterable[StripeKey]) -> None:
        for stripe in stripes:
            count = self._counts[stripe] - 1
            if count:
                self._counts[stripe] = count
            else:
                del self._counts[stripe]

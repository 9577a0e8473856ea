"""Healing: stripes that a read found damaged are made whole again in the background."""

from __future__ import annotations

import logging
import queue
import threading

from storage.errors import DataLossError, StorageError
from storage.keys import StripeKey
from storage.stripes import StripeStore

log = logging.getLogger(__name__)

_QUEUE_MAX = 10_000  # damage beyond this is left to repair


class Healer:
    """One thread that repairs stripes as damage reports come in; starts with the first of them."""

    def __init__(self, stripes: StripeStore) -> None:
        self._stripes = stripes
        self._queue: queue.Queue[StripeKey | None] = queue.Queue(_QUEUE_MAX)
        self._waiting: set[StripeKey] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def request(self, stripe: StripeKey) -> None:
        """Ask for a stripe to be healed soon; asking again while it waits changes nothing."""
        with self._lock:
            if self._closed or stripe in self._waiting or len(self._waiting) >= _QUEUE_MAX - 1:
                return
            self._waiting.add(stripe)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="healer", daemon=True)
                self._thread.start()
        self._queue.put(stripe)

    def drain(self) -> None:
        """Wait until everything asked for so far has been dealt with."""
        self._queue.join()

    def close(self) -> None:
        """End after the stripe in hand."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        while True:
            stripe = self._queue.get()
            try:
                if stripe is None:
                    return
                if not self._closed:
                    self._heal(stripe)
            finally:
                self._queue.task_done()

    def _heal(self, stripe: StripeKey) -> None:
        with self._lock:
            self._waiting.discard(stripe)
        try:
            shards, _ = self._stripes.heal(stripe)
            self._stripes.volumes.sync_each()
        except DataLossError as error:
            self._stripes.volumes.report("lost", stripe, -1, str(error))
        except StorageError as error:
            log.warning("healing %s failed, repair will do it: %s", stripe[:32].hex(), error)
        else:
            if shards:
                log.info("healed %d shards of %s", shards, stripe[:32].hex())

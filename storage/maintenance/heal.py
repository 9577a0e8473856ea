"""Healing: stripes that a read found damaged are made whole again in the background."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

from storage.errors import DataLossError, StorageError
from storage.keys import StripeKey
from storage.runtime import Runtime
from storage.stripes import StripeStore

log = logging.getLogger(__name__)

_WAITING_MAX = 10_000  # damage beyond this is left to repair


class Healer:
    """Repairs stripes one after another as damage reports come in. Thread-safe."""

    def __init__(self, stripes: StripeStore, runtime: Runtime) -> None:
        self._stripes = stripes
        self._thread = runtime.executor(1, "healer")
        self._waiting: set[StripeKey] = set()
        self._lock = threading.Lock()
        self._closed = False

    def request(self, stripe: StripeKey) -> None:
        """Ask for a stripe to be healed soon; asking again while it waits changes nothing."""
        with self._lock:
            if self._closed or stripe in self._waiting or len(self._waiting) >= _WAITING_MAX:
                return
            self._waiting.add(stripe)
        try:
            self._thread.submit(self._heal, stripe).add_done_callback(_tell_fault)
        except RuntimeError:
            log.debug("%s is not healed: the store was closed meanwhile", stripe[:32].hex())

    def drain(self) -> None:
        """Wait until everything asked for so far has been dealt with."""
        if not self._closed:
            self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """End after the stripe in hand."""
        with self._lock:
            self._closed = True
        self._thread.shutdown(cancel_futures=True)

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


def _tell_fault(healed: Future[None]) -> None:
    if not healed.cancelled() and (error := healed.exception()) is not None:
        log.error("healing failed unexpectedly", exc_info=error)

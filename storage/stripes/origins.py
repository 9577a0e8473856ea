"""Who wrote shards, as far as is known: stores are not to blame for what a client wrote wrong."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from storage.keys import StripeKey
from storage.shards import Shard

log = logging.getLogger(__name__)

_TOLD_EVERY_S = 60.0


class Origins(Protocol):
    """Knows who wrote shards. Thread-safe."""

    def is_of_client(self, shard: Shard) -> bool:
        """Whether a client wrote this content of a shard itself."""

    def is_blameless(self, shard: Shard) -> bool:
        """Whether a store that has this content may have got it from a client, so that it has not lied if it is wrong.

        Asked once for each time that the content was found to be wrong.
        """


class WrittenByStore:
    """The ``Origins`` of a store to which no client writes."""

    def is_of_client(self, shard: Shard) -> bool:
        """No."""
        return False

    def is_blameless(self, shard: Shard) -> bool:
        """No."""
        return False


class WrittenWrongLog:
    """Logs that what clients wrote is wrong: once a minute at most, however often it is found. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._found = 0
        self._due_s = clock_s()

    def note(self, stripe: StripeKey, what: str) -> None:
        """Note that a chunk was found to be wrong.

        Args:
            stripe: its stripe.
            what: what is wrong, and what happens now.
        """
        with self._lock:
            self._found += 1
            if self._clock_s() < self._due_s:
                return
            self._due_s = self._clock_s() + _TOLD_EVERY_S
            found, self._found = self._found, 0
        more = f" ({found} such findings since the last message)" if found > 1 else ""
        log.warning("chunk %s: %s%s", stripe.hex(), what, more)

"""How many bytes were read or written with each ticket."""

from __future__ import annotations

import threading
from collections import OrderedDict

from taskworker.errors import TicketRefused

_COUNTED_MAX = 4096


class SpentTickets:
    """Counts bytes by the hashes of tickets, of the latest ones. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: OrderedDict[bytes, int] = OrderedDict()

    def count(self, digest: bytes, size: int, bytes_max: int) -> None:
        """Count bytes for the ticket with this hash.

        Raises:
            TicketRefused: these are more than ``bytes_max`` in all; they are not counted.
        """
        with self._lock:
            taken = self._taken.pop(digest, 0) + size
            is_enough = taken <= bytes_max
            self._taken[digest] = taken if is_enough else taken - size
            if len(self._taken) > _COUNTED_MAX:
                self._taken.popitem(last=False)
        if not is_enough:
            raise TicketRefused(f"the ticket is for {bytes_max:,} bytes, which were used; ask for another one")

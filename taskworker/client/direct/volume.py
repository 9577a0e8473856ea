"""A worker's volume, of which gets can be given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from storage.keys import ShardKey
from taskworker.client.direct.reader import current_reader, granted_now
from taskworker.transport.fetches import Outcome
from taskworker.transport.ticketed_volume import TicketedVolume


class WorkerVolume(TicketedVolume):
    """Fetches for the get for which the calling thread reads, with that get's ticket.

    Args:
        address: see :class:`TicketedVolume`, as all others.
    """

    def __init__(self, address: str, name: str, number: int, **options: Any) -> None:
        super().__init__(address, name, number, granted_now, **options)

    def begin_fetch(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        """See :meth:`TicketedVolume.begin_fetch`.

        Raises:
            StorageError: as there, and if the get was given up.
        """
        reader = current_reader()
        if reader is None:
            return super().begin_fetch(wanted, into, done)
        return reader.begin(partial(super().begin_fetch, wanted, into), done)

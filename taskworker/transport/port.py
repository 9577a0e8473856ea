"""The port between the pool and a worker's volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from storage.shards import Shard, ShardStore


class Ticket(Protocol):
    """A sync under way.

    Attributes:
        took_s: seconds from its start to its end, once that is reached.
    """

    took_s: float

    def wait(self) -> None:
        """Return when everything before is durable.

        Raises:
            StoreFull, VolumeFailed: something of it could not be stored.
        """


class WorkerVolume(ShardStore, Protocol):
    """A worker's volume as a shard store that takes a round trip to reach.

    What is appended may still be on its way; a failure of it shows at the next sync.

    Attributes:
        misbehaved: how the worker answered as a sound one does not, if it did: with nonsense, or for ever.
    """

    misbehaved: str

    def instance(self) -> str:
        """Random name of the process that answers."""

    def start_sync(self, shards: Sequence[Shard] = ()) -> Ticket:
        """Append ``shards`` and make them and everything before durable."""


Connect = Callable[[str, str, str], WorkerVolume]
"""Connects to the worker at an address (first argument) that people know by a name (second).

Writes are taken by that process of it only whose instance is the third: another one may have lost what was
appended before.
"""

Identify = Callable[[str, str], str]
"""The instance of the process that answers at the address (first argument) of a worker (second)."""

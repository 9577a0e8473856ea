"""The port between the pool and a worker's volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from storage.shards import Shard, ShardStore


class Ticket(Protocol):
    """A running sync.

    Attributes:
        took_s: seconds from its start to its end, once it has ended.
    """

    took_s: float

    def ended_within(self, within_s: float) -> bool:
        """Wait for its end, for at most this many seconds; return whether it has ended, well or not."""

    def wait(self) -> None:
        """Wait until everything appended before is durable.

        Raises:
            StoreFull, VolumeFailed: some of it could not be stored.
        """


class WorkerVolume(ShardStore, Protocol):
    """A worker's volume as a shard store that is reached over the network.

    Appended shards may still be under way; if they fail, the next sync raises the error.

    Attributes:
        misbehaved: how the worker misbehaved: by a malformed answer, or one that never ended; empty: it did not.
    """

    misbehaved: str

    def instance(self) -> str:
        """The random name of the process that answers."""

    @property
    def received(self) -> int:
        """Number of bytes received from the worker; smaller again after a connection was closed."""

    @property
    def needs_sync(self) -> bool:
        """Whether some shards that may be found here, under way or at the worker, are not known to be durable."""

    def start_sync(self, shards: Sequence[Shard] = ()) -> Ticket:
        """Append ``shards``, and make them and everything before durable."""


Connect = Callable[[str, str, str], WorkerVolume]
"""(address, name, instance) → a connection to the worker.

Only the process with this instance name takes writes: another one may have lost what was appended before.
"""

Identify = Callable[[str, str], str]
"""(address, name) → the instance name of the process that answers at a worker's address."""

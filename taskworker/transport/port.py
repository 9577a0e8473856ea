"""The port between the pool and a worker's volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from storage.keys import ShardKey
from storage.shards import Shard, ShardStore
from taskworker.transport.making_frames import MakeOrder


class Ticket(Protocol):
    """A running sync. Not thread-safe.

    Attributes:
        size: bytes that the worker had been given at its start and had not confirmed as durable.
        took_s: seconds from its start to its end, once it has ended.
    """

    size: int
    took_s: float

    def ended_within(self, within_s: float) -> bool:
        """Wait for its end, for at most this many seconds; return whether it has ended, well or not."""

    def leave(self) -> None:
        """Send no more of it. If it was not sent as a whole, it ends once what was sent before has been answered."""

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
        address: where the volume is reached, by the pool and by other workers.
        makes: whether the worker may be told to make shards, and to prove what it has; one of a former version refuses.
    """

    misbehaved: str
    address: str
    makes: bool

    def instance(self) -> str:
        """The random name of the process that answers."""

    @property
    def received(self) -> int:
        """Number of bytes received from the worker; smaller again after a connection was closed."""

    def note_alive(self) -> None:
        """Note that the worker's heartbeat has come. Its answers may then take longer before it counts as away."""

    @property
    def needs_sync(self) -> bool:
        """Whether some shards that may be found here, under way or at the worker, are not known to be durable."""

    @property
    def oldest_s(self) -> float:
        """How many seconds ago the first of those appends was sent that have not been answered; 0: there is none."""

    def offer(self, shards: Sequence[Shard], within_s: float, *, urgent: bool = False) -> Sequence[Shard]:
        """Append shards, once the worker has room for them.

        Args:
            shards: the shards.
            within_s: how many seconds to wait for that.
            urgent: see :meth:`ShardStore.append`.

        Returns:
            Those that it had no room for.

        Raises:
            VolumeFailed: the volume is unusable.
        """

    def start_sync(self, shards: Sequence[Shard] = ()) -> Ticket:
        """Append ``shards``, and make them and everything before durable, in one message if they fit.

        If the worker has no room for them now, whoever waits for the ticket sends them; they must not change before.
        """

    def start_make(self, orders: Sequence[MakeOrder]) -> Iterator[list[bytes] | None]:
        """Tell the worker to make shards from those of other workers, and to append them.

        The call is made at once; all of the outcomes must be taken.

        Yields:
            For each stripe, the BLAKE3 hash of each wanted shard by the worker's word; None if they were not made.

        Raises:
            InvalidArgument: the worker does not know the call.
            VolumeFailed: the volume is unusable.
            StorageError: it did not make the rest.
        """

    def prove(self, nonce: bytes, keys: Sequence[ShardKey]) -> list[bytes | None]:
        """Return a hash of the payload of each shard with the key ``nonce`` (32 bytes); None if there is none.

        Raises:
            InvalidArgument: the worker does not know the call.
            VolumeFailed: the volume is unusable.
        """

    def begin_written(self, keys: Sequence[ShardKey]) -> Callable[[], list[bytes | None]]:
        """Ask for the BLAKE3 hash of each shard that a client wrote to the worker; None: none is known to have been.

        The next sync makes these shards durable.

        Returns:
            What waits for the hashes, for the calling thread. It raises the same.

        Raises:
            InvalidArgument: the worker does not know the call.
            VolumeFailed: the volume is unusable.
        """


Connect = Callable[[str, str, str], WorkerVolume]
"""(address, name, instance) → a connection to the worker.

Only the process with this instance name takes writes: another one may have lost what was appended before.
"""

Identify = Callable[[str, str], str]
"""(address, name) → the instance name of the process that answers at a worker's address."""

"""Takes shards from clients that show tickets for writing.

A client writes no other shards than those that its ticket names, each in its length, and none that is there already.
What it writes is durable only once the pool has asked for that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from blake3 import blake3

from storage.errors import InvalidArgument
from storage.keys import data_shards
from storage.shards import CorruptShard, Shard, ShardStore, VolumeReadOnly
from taskworker.auth.write_tickets import WriteTicket
from taskworker.errors import TicketRefused, WorkerReadOnly
from taskworker.transport.frames import parse_putting
from taskworker.transport.shards_of_clients import ShardsOfClients
from taskworker.transport.spent_tickets import SpentTickets
from taskworker.transport.wire.outgoing import Parts
from taskworker.transport.wire.serving import Caller

CheckWriting = Callable[[bytes], WriteTicket]
"""Returns what a ticket allows here and now; raises TicketRefused."""


class ClientsVolume(ShardStore, Protocol):
    """A volume that clients write to."""

    def append_absent(self, shards: Sequence[Shard]) -> Sequence[int]:
        """Append those shards of which none of the same key is here, whoever appends meanwhile.

        Returns:
            The positions of those that were appended.

        Raises:
            StoreFull, VolumeUnavailable, VolumeFailed: see :meth:`ShardStore.append`.
        """


CurrentForClients = Callable[[], tuple[ClientsVolume, str]]
"""See :data:`taskworker.transport.shard_service.Current`."""


class TicketedWrites:
    """Takes requests of clients. Thread-safe.

    Args:
        check: judges tickets.
        volume: returns the volume as it is open now.
        written: remembers what clients wrote.
    """

    def __init__(self, check: CheckWriting, volume: Callable[[], ClientsVolume], written: ShardsOfClients) -> None:
        self._check = check
        self._volume = volume
        self._written = written
        self._spent = SpentTickets()
        self._writing = threading.Lock()  # so that no client replaces what another one has just written

    def put(self, request: memoryview, _caller: Caller) -> Parts:
        """Store shards. Without any, only the ticket is judged.

        Raises:
            TicketRefused: the ticket is none for these shards, or another shard is in the place of one of them.
            InvalidArgument: a payload has another hash than the one given.
            StoreFull, VolumeUnavailable, VolumeFailed: see :meth:`ShardStore.append`.
        """
        raw, shards = parse_putting(request)
        ticket = self._check(raw)
        for shard in shards:
            _require_named(ticket, shard)
        if len({shard.key for shard in shards}) < len(shards):
            raise InvalidArgument("a request with two shards of one name")
        self._spent.count(ticket.digest, sum(len(shard.payload) for shard in shards), ticket.bytes_max)
        for shard in shards:
            if blake3(shard.payload).digest() != shard.digest:
                raise InvalidArgument("a shard was changed on its way: its hash is another one")
        with self._writing:
            self._store(shards)
        return ()

    def _store(self, shards: Sequence[Shard]) -> None:
        volume = self._volume()
        absent = set(volume.missing([shard.key for shard in shards]))
        self._require_same(volume, [shard for position, shard in enumerate(shards) if position not in absent])
        lacking = [shards[position] for position in sorted(absent)]
        self._written.forget(shard.key for shard in lacking)  # of another shard that was removed, maybe
        try:
            appended = set(volume.append_absent(lacking))
        except VolumeReadOnly as error:
            raise WorkerReadOnly(str(error)) from error
        self._written.unsynced += sum(len(lacking[position].payload) for position in appended)
        # The pool may have been faster.
        self._require_same(volume, [shard for position, shard in enumerate(lacking) if position not in appended])
        for shard in shards:
            self._written.note(shard.key, shard.digest)

    def _require_same(self, volume: ShardStore, shards: Iterable[Shard]) -> None:
        """Check that the volume has these shards.

        Raises:
            TicketRefused: it has another one in the place of one of them.
        """
        if not all(self._is_there(volume, shard) for shard in shards):
            raise TicketRefused("another shard of this name is here already; write this chunk through the pool")

    def _is_there(self, volume: ShardStore, shard: Shard) -> bool:
        """Whether the volume has exactly this shard."""
        try:
            found = volume.read(shard.key)
        except CorruptShard:
            return False
        return found is not None and (found.digest, found.object_length) == (shard.digest, shard.object_length)


def _require_named(ticket: WriteTicket, shard: Shard) -> None:
    length = ticket.length_of(shard.key)
    if length is None:
        raise TicketRefused("the ticket does not name this shard, or for another worker")
    if (shard.object_length, len(shard.payload)) != (length, -(-length // data_shards(shard.key))):
        raise TicketRefused("the ticket names this shard with another length")

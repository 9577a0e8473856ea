"""What clients need to read chunks from workers themselves: which worker has which shard, keys, and a ticket."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from storage import FileReader
from storage.keys import object_id_of
from storage.limits import KIB, MIB
from storage.read.places import ChunkPlace
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.tickets import OBJECTS_MAX, VALID_S, TicketIssuer
from taskworker.pool.membership import MemberRecord, Membership
from taskworker.transport.worker_fleet import WorkerFleet

NOBODY = 0xFF
"""Stands for the holder of a shard that no reachable worker has."""
# A page takes the pool about as long as sending 1 MiB. Its ticket is for this much at most.
_PAGE_BYTES = 64 * MIB
# With smaller chunks, pages are so small that reading through the pool is as fast.
_CHUNK_BYTES_MIN = 64 * KIB
_EPOCHS_MAX = 16
# Each worker has one shard of most chunks, but may have several, and is asked again for what was damaged.
_TIMES = 4
# Workers are asked where displaced shards are. If one keeps users waiting for that, clients find out by themselves.
_LOOK_S_MAX = 0.3
_LOOK_PAUSE_S = 60.0


class Holder(NamedTuple):
    """A worker to read from: the address for clients, and the DNS name in its certificate."""

    address: str
    name: str


class Page(NamedTuple):
    """How to read some chunks, one after another.

    Attributes:
        first: index of the first chunk.
        k: how they are coded.
        n: likewise.
        ids: their ids, as they are stored.
        is_sealed: whether they are encrypted.
        keys: by epoch of their owner's key, a key for each chunk, which opens this chunk alone.
        holders: workers that have shards of them.
        placed: for each chunk, n bytes: which of the holders has each shard, or :data:`NOBODY`.
        ticket: what to show to the holders.
        valid_s: for how many seconds.
        authorities: certificates of the authorities that vouch for the holders, PEM; empty: they do not use TLS.
    """

    first: int
    k: int
    n: int
    ids: list[bytes]
    is_sealed: bool
    keys: Mapping[int, list[bytes]]
    holders: list[Holder]
    placed: bytes
    ticket: bytes
    valid_s: float
    authorities: bytes


class DirectReads:
    """Answers clients that read from workers. Thread-safe.

    Args:
        fleet: knows where shards are.
        membership: knows the workers.
        tickets: issues tickets.
        pool_id: id of the pool.
        uses_tls: whether workers have certificates.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        fleet: WorkerFleet,
        membership: Membership,
        tickets: TicketIssuer,
        pool_id: str,
        uses_tls: Callable[[], bool],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._membership = membership
        self._tickets = tickets
        self._pool_id = pool_id
        self._uses_tls = uses_tls
        self._clock_s = clock_s
        self._look_from_s = -math.inf

    @property
    def is_possible(self) -> bool:
        """Whether any worker lets clients in."""
        return any(record.clients_address for record in self._membership.records)

    def page(self, reader: FileReader, user: str, start: int, stop: int) -> Page | None:
        """How to read the first chunks of a range of a version.

        Args:
            reader: the version, which the user may read.
            user: who is going to read it.
            start: first byte wanted.
            stop: end of the range, beyond ``start``.

        Returns:
            None: these are better read through the pool, or can only be read so.
        """
        size = reader.version.chunk_size
        if size < _CHUNK_BYTES_MIN:
            return None
        first = start // size
        count = min(OBJECTS_MAX, max(1, _PAGE_BYTES // size), -(-stop // size) - first)
        begun_s = self._clock_s()
        places = reader.places(first, count, look=begun_s >= self._look_from_s)
        now_s = self._clock_s()
        if now_s - begun_s > _LOOK_S_MAX:
            self._look_from_s = now_s + _LOOK_PAUSE_S
        if len(places[0].keys) > _EPOCHS_MAX:
            return None
        placing = _Placing(self._holder_of)
        for place in places:
            if not placing.add(self._there(place), place.k):
                return None
        issued = self._tickets.issue(
            user,
            [holder.name for holder in placing.holders],
            places[0].k,
            places[0].n,
            [object_id_of(place.stripe) for place in places],
            _TIMES * sum(place.length for place in places),
        )
        return Page(
            first=first,
            k=places[0].k,
            n=places[0].n,
            ids=[object_id_of(place.stripe) for place in places],
            is_sealed=bool(places[0].keys),
            keys=_by_epoch(places),
            holders=placing.holders,
            placed=bytes(placing.placed),
            ticket=issued,
            valid_s=VALID_S,
            authorities=self._tickets.authorities_pem if self._uses_tls() else b"",
        )

    def _there(self, place: ChunkPlace) -> list[MemberRecord | None]:
        """The members that have each shard of a chunk, as far as they can be used."""
        fleet, members = self._fleet, self._membership
        return [
            members.record(fleet.name(slot))
            if slot is not None and fleet.volume(slot) is not None and fleet.trusts(slot)
            else None
            for slot in place.holders
        ]

    def _holder_of(self, record: MemberRecord) -> Holder:
        return Holder(record.clients_address, MemberIdentity(self._pool_id, MemberKind.WORKER, record.worker).dns_name)


class _Placing:
    """Numbers the holders of shards."""

    def __init__(self, holder_of: Callable[[MemberRecord], Holder]) -> None:
        self._holder_of = holder_of
        self._numbers: dict[str, int] = {}
        self.holders: list[Holder] = []
        self.placed = bytearray()

    def add(self, members: list[MemberRecord | None], k: int) -> bool:
        """Add a chunk; return whether enough of its shards can be read."""
        numbers = bytes(self._number(member) for member in members)
        self.placed += numbers
        return len(numbers) - numbers.count(NOBODY) >= k

    def _number(self, member: MemberRecord | None) -> int:
        if member is None or not member.clients_address:
            return NOBODY
        number = self._numbers.get(member.worker)
        if number is None:
            if len(self.holders) == NOBODY:
                return NOBODY
            number = self._numbers[member.worker] = len(self.holders)
            self.holders.append(self._holder_of(member))
        return number


def _by_epoch(places: list[ChunkPlace]) -> dict[int, list[bytes]]:
    return {epoch: [place.keys[epoch] for place in places] for epoch in places[0].keys}

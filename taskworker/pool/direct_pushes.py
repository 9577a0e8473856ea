"""What clients need to write chunks to workers themselves: keys, places, a ticket, and what the workers have."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from storage.errors import InvalidArgument, StorageError
from storage.keys import ShardKey
from storage.limits import MIB
from storage.sealing.objects import OVERHEAD_BYTES
from storage.write.client_chunks import ClientChunk, ClientChunks, Placed
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.tickets import VALID_S, TicketIssuer
from taskworker.auth.write_tickets import OBJECTS_MAX, ToWrite, issue
from taskworker.pool.direct_reads import NOBODY, Holder
from taskworker.pool.membership import Membership
from taskworker.transport.port import WorkerVolume
from taskworker.transport.worker_fleet import WorkerFleet

PUSH_ID_BYTES = 16
_SHARD_BYTES_MAX = MIB  # a larger one does not fit into a message to a worker
_TIMES = 3  # a client writes each shard once, and once more after a connection failed
_BEGINNING_S = 3.0  # a client's first call may overtake the beginning of its push


class Prepared(NamedTuple):
    """How to seal and code chunks: epoch and keys, one for each chunk, and k and n."""

    epoch: int
    keys: list[bytes]
    k: int
    n: int


class Places(NamedTuple):
    """Where to write chunks.

    Attributes:
        holders: the workers.
        placed: for each chunk, n bytes: which of the holders gets each shard, or :data:`NOBODY` for all.
        ticket: what to show to the holders; empty: no chunk can be written.
        valid_s: for how many seconds.
        authorities: certificates of the authorities that vouch for the holders, PEM; empty: they do not use TLS.
    """

    holders: list[Holder]
    placed: bytes
    ticket: bytes
    valid_s: float
    authorities: bytes


class DirectPushes:
    """Answers clients that write to workers. Thread-safe.

    A call is about a push that is under way, which it names by the owner and an id that only the client knows.

    Args:
        fleet: knows where shards are written.
        membership: knows the workers.
        tickets: issues tickets.
        pool_id: id of the pool.
        uses_tls: whether workers have certificates.
        seals: whether the pool encrypts new files; only then clients write to workers.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        fleet: WorkerFleet,
        membership: Membership,
        tickets: TicketIssuer,
        pool_id: str,
        uses_tls: Callable[[], bool],
        seals: Callable[[], bool],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._membership = membership
        self._tickets = tickets
        self._pool_id = pool_id
        self._uses_tls = uses_tls
        self._seals = seals
        self._clock_s = clock_s
        self._changed = threading.Condition()
        self._under_way: dict[tuple[str, bytes], ClientChunks | None] = {}
        self._able: dict[int, tuple[WorkerVolume, bool]] = {}  # by slot, whether it takes shards from clients

    @property
    def is_possible(self) -> bool:
        """Whether the pool encrypts, and any worker lets clients in."""
        return self._seals() and any(record.clients_address for record in self._membership.records)

    @contextmanager
    def under_way(self, user: str, push_id: bytes, chunks: ClientChunks | None) -> Iterator[None]:
        """A context in which a client may write chunks of a push, or is told at once that it cannot.

        Args:
            user: the owner of the file.
            push_id: names the push.
            chunks: those of the push; None: it is for the pool alone.

        Raises:
            InvalidArgument: the id is malformed, or that of another push.
        """
        key = user, push_id
        if len(push_id) != PUSH_ID_BYTES:
            raise InvalidArgument(f"the id of a push has {PUSH_ID_BYTES} bytes")
        with self._changed:
            if key in self._under_way:
                raise InvalidArgument("another push has this id; choose another one at random")
            self._under_way[key] = chunks
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                del self._under_way[key]

    def prepare(self, user: str, push_id: bytes, plain_ids: Sequence[bytes]) -> Prepared:
        """How to seal and code chunks of a push, given the hashes of their contents.

        Raises:
            InvalidArgument: there is no such push, or its chunks cannot be written to workers.
        """
        chunks = self._find(user, push_id)
        _check_count(len(plain_ids))
        profile = chunks.profile
        if profile.shard_length(chunks.chunk_size + OVERHEAD_BYTES) > _SHARD_BYTES_MAX:
            raise InvalidArgument("shards of this file are too large to be written to workers; send it to the pool")
        epoch, keys = chunks.keys_for(plain_ids)
        return Prepared(epoch, keys, profile.k, profile.n)

    def place(self, user: str, push_id: bytes, caller: str, wanted: Sequence[ClientChunk]) -> Places:
        """Where to write chunks of a push.

        Args:
            user: the owner of the file.
            push_id: names the push.
            caller: who is going to write.
            wanted: the chunks.

        Raises:
            InvalidArgument: there is no such push, or a chunk is malformed.
            QuotaExceeded, InsufficientWorkers, StoreFull: see :meth:`ClientChunks.place`.
        """
        chunks = self._find(user, push_id)
        _check_count(len(wanted))
        holders: dict[int, Holder | None] = {}

        def is_open(slot: int) -> bool:
            if slot not in holders:
                holders[slot] = self._holder(slot)
            return holders[slot] is not None

        placed = chunks.place(wanted, is_open)
        numbers: dict[int, int] = {}
        sizes: Counter[int] = Counter()
        named: list[ToWrite] = []
        rows: list[bytes] = []
        for chunk, one in zip(wanted, placed, strict=True):
            if one is None or len(numbers.keys() | set(one.stores)) > NOBODY:
                rows.append(bytes([NOBODY] * chunks.profile.n))
                continue
            rows.append(bytes(numbers.setdefault(slot, len(numbers)) for slot in one.stores))
            named.append(ToWrite(chunk.stored_id, one.length, rows[-1]))
            sizes.update(_sizes(one, chunks.profile.shard_length(one.length)))
        there = [holder for slot in numbers if (holder := holders[slot]) is not None]
        ticket = b""
        if named:
            names, profile = [holder.name for holder in there], chunks.profile
            bytes_max = _TIMES * max(sizes.values())
            ticket = issue(self._tickets, caller, names, profile.k, profile.n, named, bytes_max)
        authorities = self._tickets.authorities_pem if self._uses_tls() else b""
        return Places(there, b"".join(rows), ticket, VALID_S, authorities)

    def settle(self, user: str, push_id: bytes, stored_ids: Sequence[bytes]) -> list[bool]:
        """Which chunks of a push the workers have, with all their shards.

        Raises:
            InvalidArgument: there is no such push.
        """
        chunks = self._find(user, push_id)
        _check_count(len(stored_ids))
        return chunks.settle(stored_ids, self._ask)

    def _ask(self, slot: int, keys: Sequence[ShardKey]) -> Callable[[], Sequence[bytes | None]]:
        """Ask a worker what it has, while others are being asked."""
        nothing: list[bytes | None] = [None] * len(keys)
        volume = self._fleet.volume(slot)
        if volume is None or not self._fleet.trusts(slot):
            return lambda: nothing
        try:
            answer = volume.begin_written(keys)
        except StorageError as error:
            self._fleet.failed(slot, volume, error)
            return lambda: nothing

        def ended() -> Sequence[bytes | None]:
            try:
                return answer()
            except StorageError as error:
                self._fleet.failed(slot, volume, error)
                return nothing

        return ended

    def _holder(self, slot: int) -> Holder | None:
        """The worker in a slot, if clients can write to it now."""
        fleet = self._fleet
        volume = fleet.volume(slot)
        if volume is None or not self._is_able(slot, volume):
            return None
        record = self._membership.record(fleet.name(slot))
        if record is None or not record.clients_address:
            return None
        identity = MemberIdentity(self._pool_id, MemberKind.WORKER, record.worker)
        return Holder(record.clients_address, identity.dns_name)

    def _is_able(self, slot: int, volume: WorkerVolume) -> bool:
        """Whether a worker takes shards from clients. It is asked once after it has joined."""
        known, is_able = self._able.get(slot, (None, False))
        if known is volume:
            return is_able
        try:
            volume.begin_written([])()
            is_able = True
        except InvalidArgument:  # a worker of a former release
            is_able = False
        except StorageError as error:
            self._fleet.failed(slot, volume, error)
            return False
        self._able[slot] = volume, is_able
        return is_able

    def _find(self, user: str, push_id: bytes) -> ClientChunks:
        until_s = self._clock_s() + _BEGINNING_S
        with self._changed:
            while (user, push_id) not in self._under_way:
                left_s = until_s - self._clock_s()
                if left_s <= 0:
                    raise InvalidArgument("no push with this id is under way; send the chunks to the pool")
                self._changed.wait(left_s)
            found = self._under_way[user, push_id]
        if found is None:
            raise InvalidArgument("the chunks of this push are not written to workers; send them to the pool")
        return found


def _sizes(placed: Placed, shard_bytes: int) -> dict[int, int]:
    return {slot: count * shard_bytes for slot, count in Counter(placed.stores).items()}


def _check_count(count: int) -> None:
    if count > OBJECTS_MAX:
        raise InvalidArgument(f"{count} chunks in one message, at most {OBJECTS_MAX} are allowed; send more messages")

"""Tickets for writing: with one, a client gives certain shards of certain objects to certain workers.

They are signed as those for reading are, for another purpose, so that neither can be used as the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
from blake3 import blake3

from storage.clocks import wall_ms
from storage.keys import ID_BYTES, Kind, ShardKey, slot_of, split_stripe_key
from storage.limits import OBJECT_BYTES_MAX
from taskworker.auth.certificates import Lifetime
from taskworker.auth.identity import MemberIdentity
from taskworker.auth.tickets import (
    USER_BYTES,
    VALID_S,
    WORKERS_MAX,
    Count,
    Name,
    Shards,
    TicketIssuer,
    opened,
    require_short,
    require_valid,
)
from taskworker.errors import TicketRefused

WRITING = b"TaskWorker write ticket\0"
"""What is signed before the body."""
OBJECTS_MAX = 64
"""How many objects a ticket names at most."""
_FORMAT = 1
_REMEMBERED = 128


class ToWrite(NamedTuple):
    """An object of which shards may be written.

    Attributes:
        object_id: its id.
        length: its length in bytes.
        placed: for each shard, the position of its worker among those of the ticket.
    """

    object_id: bytes
    length: int
    placed: Sequence[int]


class WriteTicket(NamedTuple):
    """What a client may write to one worker.

    Attributes:
        k: how the objects are coded.
        n: likewise.
        objects: the length of each, by its id, and the position in ``placed`` of its first shard.
        placed: for each shard, the position of its worker.
        worker: the position of this one.
        bytes_max: how many bytes of payloads the worker takes.
        issued_ms: when it was issued, in ms since 1970.
        expires_ms: until when it is valid.
        digest: hash of what was signed.
    """

    k: int
    n: int
    objects: Mapping[bytes, tuple[int, int]]
    placed: bytes
    worker: int
    bytes_max: int
    issued_ms: int
    expires_ms: int
    digest: bytes

    def length_of(self, key: ShardKey) -> int | None:
        """The length of the object of a shard that may be written here; None: it may not."""
        object_id, kind, k, n = split_stripe_key(key)
        found = self.objects.get(object_id)
        if found is None or kind is not Kind.CHUNK or (k, n) != (self.k, self.n):
            return None
        length, at = found
        return length if self.placed[at + slot_of(key)] == self.worker else None


_Length = Annotated[int, msgspec.Meta(ge=1, le=OBJECT_BYTES_MAX)]


class _Body(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    format: Annotated[int, msgspec.Meta(ge=_FORMAT, le=_FORMAT)]
    pool: Name
    writer: Annotated[bytes, msgspec.Meta(min_length=USER_BYTES, max_length=USER_BYTES)]
    workers: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=WORKERS_MAX)]
    k: Shards
    n: Shards
    objects: Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=OBJECTS_MAX * ID_BYTES)]
    lengths: Annotated[list[_Length], msgspec.Meta(min_length=1, max_length=OBJECTS_MAX)]
    placed: bytes
    bytes_max: Count
    issued_ms: Count
    expires_ms: Count


_bodies = msgspec.msgpack.Decoder(_Body)


def issue(
    tickets: TicketIssuer, user: str, workers: Sequence[str], k: int, n: int, objects: Sequence[ToWrite], bytes_max: int
) -> bytes:
    """Issue a ticket that is valid for :data:`~taskworker.auth.tickets.VALID_S` seconds.

    Args:
        tickets: signs it.
        user: who is going to write; workers are not told.
        workers: DNS names in the certificates of the workers, at most ``WORKERS_MAX``.
        k: how the objects are coded.
        n: likewise.
        objects: the objects, at most :data:`OBJECTS_MAX`.
        bytes_max: how many bytes of payloads each worker takes.
    """
    head = tickets.head(user)
    body = _Body(
        format=_FORMAT,
        pool=head.pool,
        writer=head.user,
        workers=list(workers),
        k=k,
        n=n,
        objects=b"".join(one.object_id for one in objects),
        lengths=[one.length for one in objects],
        placed=b"".join(bytes(one.placed) for one in objects),
        bytes_max=bytes_max,
        issued_ms=head.issued_ms,
        expires_ms=head.expires_ms,
    )
    return tickets.sign(WRITING, body)


class WriteTicketChecker:
    """Checks tickets for writing that are shown to a worker. Thread-safe.

    Args:
        identity: the worker.
        authorities: returns the certificates of the authorities that the worker trusts, PEM; empty: none yet.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self, identity: MemberIdentity, authorities: Callable[[], bytes], now_ms: Callable[[], int] = wall_ms
    ) -> None:
        self._identity = identity
        self._authorities = authorities
        self._now_ms = now_ms
        self._read = functools.lru_cache(maxsize=_REMEMBERED)(self._read_signed)

    def check(self, raw: bytes) -> WriteTicket:
        """Return what a ticket allows here and now.

        Raises:
            TicketRefused: it is malformed, for another purpose, not signed by the pool, expired, or for other workers;
                the text says which.
        """
        require_short(raw)
        ticket, lifetime = self._read(raw, self._authorities())
        require_valid(ticket.issued_ms, ticket.expires_ms, lifetime, self._now_ms())
        return ticket

    def _read_signed(self, raw: bytes, authorities: bytes) -> tuple[WriteTicket, Lifetime]:
        """Read a ticket of this pool, and check all that does not depend on the time."""
        raw_body, lifetime = opened(raw, WRITING, authorities, self._identity.pool)
        try:
            body = _bodies.decode(raw_body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TicketRefused(f"the ticket is malformed: {error}") from None
        if body.pool != self._identity.pool:
            raise TicketRefused("the ticket is of another pool")
        if self._identity.dns_name not in body.workers:
            raise TicketRefused("the ticket is for other workers")
        count = len(body.lengths)
        if body.k > body.n or len(body.objects) != count * ID_BYTES or len(body.placed) != count * body.n:
            raise TicketRefused("the ticket is malformed: no objects of this kind exist")
        ids = (body.objects[at : at + ID_BYTES] for at in range(0, len(body.objects), ID_BYTES))
        ticket = WriteTicket(
            body.k,
            body.n,
            {one: (length, at * body.n) for at, (one, length) in enumerate(zip(ids, body.lengths, strict=True))},
            body.placed,
            body.workers.index(self._identity.dns_name),
            body.bytes_max,
            body.issued_ms,
            min(body.expires_ms, body.issued_ms + int(VALID_S * 1000)),
            blake3(raw_body).digest(),
        )
        return ticket, lifetime

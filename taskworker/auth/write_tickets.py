"""Tickets for writing: with one, a client gives certain shards of certain objects to certain workers.

They are signed as those for reading are, for another purpose, so that neither can be used as the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec

from storage.clocks import wall_ms
from storage.keys import ID_BYTES, Kind, ShardKey, slot_of, split_stripe_key
from storage.limits import OBJECT_BYTES_MAX
from taskworker.auth.identity import MemberIdentity
from taskworker.auth.tickets import (
    USER_BYTES,
    WORKERS_MAX,
    Checker,
    Count,
    Name,
    Shards,
    TicketIssuer,
)
from taskworker.errors import TicketRefused

WRITING = b"TaskWorker write ticket\0"
"""What is signed before the body."""
OBJECTS_MAX = 64
"""How many objects a ticket names at most."""
_FORMAT = 1


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


class WriteTicketChecker(Checker[_Body, WriteTicket]):
    """Checks tickets for writing; see :class:`Checker`."""

    def __init__(
        self, identity: MemberIdentity, authorities: Callable[[], bytes], now_ms: Callable[[], int] = wall_ms
    ) -> None:
        super().__init__(WRITING, _bodies, identity, authorities, now_ms)

    def _ticket(self, body: _Body, expires_ms: int, digest: bytes) -> WriteTicket:
        count = len(body.lengths)
        if body.k > body.n or len(body.objects) != count * ID_BYTES or len(body.placed) != count * body.n:
            raise TicketRefused("the ticket is malformed: no objects of this kind exist")
        ids = (body.objects[at : at + ID_BYTES] for at in range(0, len(body.objects), ID_BYTES))
        return WriteTicket(
            body.k,
            body.n,
            {one: (length, at * body.n) for at, (one, length) in enumerate(zip(ids, body.lengths, strict=True))},
            body.placed,
            body.workers.index(self._identity.dns_name),
            body.bytes_max,
            body.issued_ms,
            expires_ms,
            digest,
        )

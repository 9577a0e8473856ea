"""Serves clients that show tickets, on a port and in threads that the pool and other workers do not share.

Whoever connects may do nothing but take shards that a ticket names, or put those that one for writing names. The ticket
comes with each request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from storage.keys import Kind, split_stripe_key
from storage.limits import MIB
from taskworker.auth.tickets import Ticket
from taskworker.errors import TicketRefused
from taskworker.transport.frames import PUT_BYTES_MAX, TAKING_BYTES_MAX, Call, Wanted, parse_taking
from taskworker.transport.observed import observed
from taskworker.transport.shard_service import ShardService, describe
from taskworker.transport.shards_of_clients import ShardsOfClients
from taskworker.transport.spent_tickets import SpentTickets
from taskworker.transport.ticketed_writes import CheckWriting, CurrentForClients, TicketedWrites
from taskworker.transport.wire.outgoing import Parts
from taskworker.transport.wire.server import WireLimits, WireServer
from taskworker.transport.wire.serving import Caller, Method, Style
from taskworker.transport.wire.strangers import StrangersLimits
from taskworker.transport.wire.streams import Secure, SocketStream

# A connection costs a descriptor and, with TLS, about 40 KiB of memory. So there are few that have shown no good ticket
# yet, for a short time; they are closed in favour of others. The descriptors that are spared are for members. Half of
# the threads that members have, so that those come first.
CLIENTS_LIMITS = WireLimits(
    connections=512,
    threads=24,
    bodies_bytes=16 * MIB,
    answers_bytes=16 * MIB,
    body_bytes_max=PUT_BYTES_MAX,
    idle_s=30.0,
    # A host may start as many readers at once.
    of_host=0.5,
    strangers=StrangersLimits(
        connections=256, of_host=128, bodies_bytes=2 * MIB, proving_s=15.0, body_bytes_max=TAKING_BYTES_MAX
    ),
    spares=0.25,
)

Check = Callable[[bytes], Ticket]
"""Returns what a ticket allows here and now; raises TicketRefused."""


class TicketedReads:
    """Takes requests of clients. Thread-safe.

    Args:
        check: judges tickets.
        payloads: reads shards.
    """

    def __init__(self, check: Check, payloads: Callable[[Sequence[Wanted]], Parts]) -> None:
        self._check = check
        self._payloads = payloads
        self._spent = SpentTickets()

    def take(self, request: memoryview, _caller: Caller) -> Parts:
        """Payloads, not verified: the reader verifies the whole object.

        Raises:
            TicketRefused: the ticket is none for these shards; the text says why.
        """
        raw, wanted = parse_taking(request)
        ticket = self._check(raw)
        for want in wanted:
            _require_named(ticket, want)
        self._spent.count(ticket.digest, sum(want.length for want in wanted), ticket.bytes_max)
        return self._payloads(wanted)


def _require_named(ticket: Ticket, want: Wanted) -> None:
    object_id, kind, k, n = split_stripe_key(want.key)
    if kind is not Kind.CHUNK or (k, n) != (ticket.k, ticket.n) or object_id not in ticket.objects:
        raise TicketRefused("the ticket does not name this shard")


def clients_server(
    current: CurrentForClients,
    check: Check,
    check_writing: CheckWriting,
    written: ShardsOfClients,
    hide: tuple[str, ...],
    secure: Secure = SocketStream,
) -> WireServer:
    """A server for clients with tickets.

    Args:
        current: returns the volume as it is open now, and the name of this process.
        check: judges tickets.
        check_writing: judges tickets for writing.
        written: remembers what clients write.
        hide: paths not to show to callers.
        secure: makes an accepted socket a stream.
    """
    service = ShardService(None, "", current)
    reads = TicketedReads(check, service.payloads)
    writes = TicketedWrites(check_writing, lambda: current()[0], written)
    methods = {
        int(Call.TAKE): Method(Call.TAKE.name, Style.QUICK, reads.take),
        int(Call.PUT): Method(Call.PUT.name, Style.QUICK, writes.put),
    }
    return WireServer(observed(methods), lambda error: describe(error, hide), secure=secure, limits=CLIENTS_LIMITS)

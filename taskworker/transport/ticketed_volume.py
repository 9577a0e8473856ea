"""A worker's volume as those see it who only have tickets: shards can be fetched from it and put to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from blake3 import blake3

from storage.errors import StorageError
from storage.keys import ShardKey, StripeKey, data_shards, slot_of, stripe_of
from storage.limits import BytesLike
from storage.shards import Location, Shard, VolumeFailed
from taskworker.transport.fetches import Asking, Outcome, begin_fetches
from taskworker.transport.frames import Call, Wanted, pack_putting, pack_taking
from taskworker.transport.shard_calls import Lane, ShardCalls
from taskworker.transport.wire.answers import OneAnswer, Refused
from taskworker.transport.wire.connection import Connection, Poller, Signal
from taskworker.transport.wire.framing import WireError
from taskworker.transport.wire.poller import SHARED
from taskworker.transport.wire.streams import Dial, dial

_LANE = Lane.FETCHES  # the only one: workers give clients few connections, and nothing small is fetched often
_IDLE_S = 20.0  # workers close idle connections of clients after 30 s
_NOWHERE = (0, 0)  # segment and offset, which only the worker knows


class Granted(NamedTuple):
    """An object that may be read.

    Attributes:
        length: its length in bytes.
        ticket: what allows it.
        holders: who has each shard; the caller's numbers.
    """

    length: int
    ticket: bytes
    holders: tuple[int, ...]

    def shard_bytes(self, key: ShardKey) -> int:
        """The length of a shard's payload."""
        return -(-self.length // data_shards(key))


Find = Callable[[StripeKey], Granted | None]
"""Returns what is known of an object; None: nothing."""


class TicketedVolume:
    """The part of :class:`storage.shards.ShardStore` that reads, and what writes with tickets. Thread-safe.

    Args:
        address: the worker's address for clients, ``host:port`` or ``unix:path``.
        name: the worker's name, for texts.
        number: the worker's number among the holders of objects.
        find: returns what is known of an object.
        timeout_s: seconds without a sign of life after which the worker counts as away.
        poller: receives for the connections.
        dial: connects to an address.
        clock_s: monotonic seconds.
        left_s: for how many seconds the calling thread still waits until a request is sent; asked again and again.
    """

    def __init__(
        self,
        address: str,
        name: str,
        number: int,
        find: Find,
        *,
        timeout_s: float,
        poller: Poller = SHARED,
        dial: Dial = dial,
        clock_s: Callable[[], float] = time.monotonic,
        left_s: Callable[[], float] | None = None,
    ) -> None:
        self._left_s = left_s
        self._name = name
        self._number = number
        self._find = find
        self._calls = ShardCalls(address, name, timeout_s, poller, dial, clock_s, idle_s=_IDLE_S, repeats=True)
        self._judged: Connection | None = None  # on which the worker accepted the ticket of the last put

    def connect(self) -> None:
        """Connect, if there is no connection yet.

        Raises:
            VolumeFailed: nobody answers there, or not who was expected.
        """
        self._calls.connect(_LANE, self._left_s)

    def begin_fetch(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        """See :meth:`ShardStore.begin_fetch`. Those of the shards that no ticket names are absent."""
        tickets = [self._ticket(key) for key, _ in wanted]
        named = dict.fromkeys(ticket for ticket in tickets if ticket)
        if len(named) <= 1:
            absent = [key for (key, _), ticket in zip(wanted, tickets, strict=True) if not ticket]
            asking = _asking(next(iter(named), b""))
            return begin_fetches(self._calls, wanted, into, done, absent, asking, _LANE, self._left_s)
        # Objects may have tickets of their own.
        several = Several(len(named), len(wanted), done)
        cancels: list[Callable[[], None]] = []
        try:
            for ticket in named:
                at = [position for position, other in enumerate(tickets) if other == ticket]
                some, places = [wanted[one] for one in at], [into[one] for one in at]
                told = partial(several.note, at)
                asking = _asking(ticket)
                cancels.append(begin_fetches(self._calls, some, places, told, (), asking, _LANE, self._left_s))
        except StorageError:
            for each in cancels:
                each()
            raise

        def cancel() -> None:
            for each in cancels:
                each()

        return cancel

    def _ticket(self, key: ShardKey) -> bytes:
        found = self._find(stripe_of(key))
        return b"" if found is None else found.ticket

    def read(self, key: ShardKey) -> Shard | None:
        """See :meth:`ShardStore.read`. The digest is that of what came; the object's hash tells whether it is right."""
        found = self._find(stripe_of(key))
        if found is None:
            return None
        payload = memoryview(bytearray(found.shard_bytes(key)))
        signal = self._calls.poller.signal()
        outcomes: list[Outcome] = []

        def ended(outcome: Outcome) -> None:
            outcomes.append(outcome)
            signal.set()

        cancel = self.begin_fetch([(key, len(payload))], [payload], ended)
        try:
            signal.wait()
        finally:
            cancel()
        (outcome,) = outcomes
        if isinstance(outcome, StorageError):
            raise outcome
        return Shard(key, found.length, blake3(payload).digest(), payload) if outcome[0] else None

    def locate(self, key: ShardKey) -> Location | None:
        """See :meth:`ShardStore.locate`: by what the pool said."""
        found = self._find(stripe_of(key))
        if found is None or found.holders[slot_of(key)] != self._number:
            return None
        return Location(*_NOWHERE, found.shard_bytes(key), found.length)

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        """See :meth:`locate`."""
        return [self.locate(key) for key in keys]

    def discard(self, _key: ShardKey, _location: Location, *, wrong: bool) -> bool:
        """See :meth:`ShardStore.discard`. A client sets nothing aside: the pool finds a bad shard by itself."""
        return False

    def begin_put(self, ticket: bytes, shards: Sequence[Shard], left_s: Callable[[], float] | None = None) -> Putting:
        """Begin to write shards with a ticket. Their payloads may change once this returns.

        Args:
            ticket: a ticket for writing.
            shards: the shards; none: only the ticket is judged.
            left_s: for how many seconds the caller still waits until they are sent; asked again and again.

        Raises:
            VolumeFailed: the volume is unusable.
            VolumeUnavailable: the caller's time was over before.
        """
        self._calls.check_usable()
        signal = self._calls.poller.signal()
        answer = OneAnswer(signal, 0)
        connection, number = self._calls.send(
            Call.PUT, pack_putting(ticket, shards), answer, _LANE, left_s=left_s or self._left_s
        )

        def note(*, taken: bool) -> None:
            self._judged = connection if taken else None

        return Putting(self._calls, signal, answer, partial(connection.cancel, number), note)

    @property
    def distance_s(self) -> float | None:
        """The shortest round trip on the present connection, in seconds; None: no ticket was accepted on it lately."""
        judged = self._judged
        if judged is None or not judged.is_usable:
            return None
        try:
            return judged.stream.shortest_round_trip_s()
        except OSError:  # it has just been closed
            return None

    def abandon(self, reason: str) -> None:
        """Close the connections; calls fail with this reason."""
        self._calls.fail(VolumeFailed(reason))
        self._calls.disconnect()

    def close(self) -> None:
        """Close the connections."""
        self.abandon(f"the connection to worker {self._name} was closed")


class NoteTaken(Protocol):
    """Notes whether a worker has taken what it was given."""

    def __call__(self, *, taken: bool) -> None:
        """Note it."""


class Putting:
    """Shards on their way to a worker. For one thread."""

    def __init__(
        self,
        calls: ShardCalls,
        signal: Signal,
        answer: OneAnswer,
        cancel: Callable[[], None],
        note: NoteTaken,
    ) -> None:
        self._calls = calls
        self._signal = signal
        self._answer = answer
        self._cancel = cancel
        self._note = note

    def cancel(self) -> None:
        """Wait for them no more. The worker may take them all the same."""
        self._cancel()

    def wait(self, within_s: float = -1) -> bool:
        """Wait until the worker has them, though not durably yet; return False if the time ran out.

        Args:
            within_s: for how long; negative: for ever.

        Raises:
            StoreFull: it has no space.
            VolumeUnavailable: it does not take them.
            VolumeFailed: the volume is unusable.
        """
        if not self._signal.wait(within_s):
            return False
        try:
            self._answer.wait()
        except (Refused, OSError, WireError) as error:
            self._note(taken=False)
            raise self._calls.meaning(error, Call.PUT) from None
        self._note(taken=True)
        return True


def _asking(ticket: bytes) -> Asking:
    def asking(wanted: Sequence[Wanted]) -> tuple[Call, Sequence[BytesLike]]:
        return Call.TAKE, pack_taking(ticket, wanted)

    return asking


class Several:
    """Gathers the outcomes of several fetches. Thread-safe.

    Args:
        fetches: how many there are.
        wanted: how many shards they fetch; those that no fetch tells of are absent.
        done: called once with the outcome of all.
    """

    def __init__(self, fetches: int, wanted: int, done: Callable[[Outcome], None]) -> None:
        self._left = fetches
        self._present = [False] * wanted
        self._failure: StorageError | None = None
        self._done = done
        self._lock = threading.Lock()

    def note(self, positions: Sequence[int], outcome: Outcome) -> None:
        """Note the outcome of the fetch of the shards in these positions."""
        with self._lock:
            if isinstance(outcome, StorageError):
                self._failure = outcome
            else:
                for position, present in zip(positions, outcome, strict=True):
                    self._present[position] = present
            self._left -= 1
            ended = not self._left
        if ended:
            self._done(self._failure or self._present)

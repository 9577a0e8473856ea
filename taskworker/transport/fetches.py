"""Fetches of payloads: received straight into the reader's memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import compress

from storage.errors import InvalidArgument, StorageError
from storage.keys import ShardKey
from storage.limits import BytesLike
from taskworker.transport.frames import (
    KEYS_MAX,
    MESSAGE_BYTES_MAX,
    PRESENT,
    Call,
    Wanted,
    fetched_bytes,
    pack_wanted,
    parse_fetched,
)
from taskworker.transport.shard_calls import Lane, ShardCalls
from taskworker.transport.wire.answers import Refused
from taskworker.transport.wire.connection import Connection
from taskworker.transport.wire.framing import LAST, Header, WireError

Outcome = Sequence[bool] | StorageError
"""Which payloads are in their places, or why nothing is known of any."""

Asking = Callable[[Sequence[Wanted]], tuple[Call, Sequence[BytesLike]]]
"""Returns the method by which shards are asked for, and the parts of the request."""

# Larger answers would keep small ones waiting.
_URGENT_BYTES_MAX = 32 * 1024


def as_member(wanted: Sequence[Wanted]) -> tuple[Call, Sequence[BytesLike]]:
    """How the pool and other workers ask."""
    return Call.FETCH, [pack_wanted(wanted)]


def _ignore(_outcome: Outcome) -> None:
    """Nobody waits for it any more."""


class Fetch:
    """A fetch under way. See :class:`taskworker.transport.wire.connection.Answer`.

    Args:
        calls: makes the calls to the worker.
        wanted: the shards, which fit into one message.
        into: memory for each payload, with its length.
        done: called once with the outcome, also of a fetch that was cancelled; by any thread, and must not wait.
        asking: how to ask.
        lane: the connection to use; None: one for its size.
        left_s: for how many seconds the caller still waits until the request is sent. It is asked again and again.
    """

    __slots__ = (
        "_asking",
        "_calls",
        "_connection",
        "_done",
        "_into",
        "_lane",
        "_left_s",
        "_message",
        "_number",
        "_states",
        "_wanted",
        "bytes_max",
    )

    def __init__(
        self,
        calls: ShardCalls,
        wanted: Sequence[Wanted],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
        asking: Asking = as_member,
        lane: Lane | None = None,
        left_s: Callable[[], float] | None = None,
    ) -> None:
        self._left_s = left_s
        self._calls = calls
        self._asking = asking
        self._wanted = wanted
        self._into = into
        self._done = done
        self.bytes_max = fetched_bytes(wanted)
        self._lane = lane or (Lane.URGENT if self.bytes_max <= _URGENT_BYTES_MAX else Lane.FETCHES)
        self._states = bytearray(len(wanted))
        self._message: bytearray | None = None
        self._connection: Connection | None = None
        self._number = 0

    def begin(self) -> None:
        """Send the request.

        Raises:
            VolumeFailed: it cannot be sent.
            VolumeUnavailable: the caller's time was over before.
        """
        self._calls.check_usable()
        call, request = self._asking(self._wanted)
        self._connection, self._number = self._calls.send(call, request, self, self._lane, left_s=self._left_s)

    def cancel(self) -> None:
        """Give the fetch up. Once this returns, nothing is written to the memory any more."""
        if self._connection is not None:
            self._connection.cancel(self._number)

    def memory(self, header: Header) -> Sequence[memoryview]:
        """See :class:`Answer`. An answer of the full length has all payloads in order."""
        if header.length == self.bytes_max:
            return [*self._into, memoryview(self._states)]
        self._message = bytearray(header.length)
        return [memoryview(self._message)]

    def arrived(self, header: Header) -> None:
        """See :class:`Answer`."""
        if not header.flags & LAST:
            raise WireError("a second message of an answer that has only one")
        if self._message is None:
            self._end([state == PRESENT for state in self._states])
            return
        try:
            payloads = parse_fetched(memoryview(self._message), self._wanted)
        except InvalidArgument as error:
            raise WireError(str(error)) from None
        for payload, place in zip(payloads, self._into, strict=True):
            if payload is not None:
                place[:] = payload
        self._end([payload is not None for payload in payloads])

    def refused(self, description: bytes) -> None:
        """See :class:`Answer`."""
        self.lost(Refused(description))

    def dropped(self) -> None:
        """See :class:`Answer`."""
        self._end([False] * len(self._wanted))

    def lost(self, error: Exception) -> None:
        """See :class:`Answer`."""
        self._end(self._calls.meaning(error, Call.FETCH))

    def _end(self, outcome: Outcome) -> None:
        """Tell the outcome, and let go of the memory and of who waits, who knows how to cancel this.

        Otherwise they would keep each other, and the memory of a get would wait for a garbage collection.
        """
        done, self._done = self._done, _ignore
        self._into, self._message = (), None
        done(outcome)


def begin_fetches(
    calls: ShardCalls,
    wanted: Sequence[tuple[ShardKey, int]],
    into: Sequence[memoryview],
    done: Callable[[Outcome], None],
    absent: Collection[ShardKey] = (),
    asking: Asking = as_member,
    lane: Lane | None = None,
    left_s: Callable[[], float] | None = None,
) -> Callable[[], None]:
    """Begin to fetch any number of payloads; see :meth:`storage.shards.port.ShardStore.begin_fetch`.

    Args:
        calls: makes the calls to the worker.
        wanted: key and payload length of each shard.
        into: memory for each payload, with its length.
        done: called once with the outcome.
        absent: those of the shards that need not be asked for, as the worker does not have them.
        asking: how to ask.
        lane: the connection to use; None: one for the size of what is fetched.
        left_s: see :class:`Fetch`.
    """
    if absent:
        there = [key not in absent for key, _ in wanted]
        wanted, into = list(compress(wanted, there)), list(compress(into, there))
        done = partial(_spread, there, done)
    batches = list(_fitting(wanted))
    joint = _Joint(len(batches), done)
    fetches: list[Fetch] = []
    at = 0
    try:
        for number, batch in enumerate(batches):
            fetch = Fetch(calls, batch, into[at : at + len(batch)], partial(joint.note, number), asking, lane, left_s)
            fetch.begin()
            fetches.append(fetch)
            at += len(batch)
    except StorageError:
        for fetch in fetches:
            fetch.cancel()
        raise
    if not batches:
        done(())

    def cancel() -> None:
        for fetch in fetches:
            fetch.cancel()

    return cancel


class _Joint:
    """Gathers the outcomes of several fetches into one. Called by the receiving thread only, or before it may be."""

    def __init__(self, count: int, done: Callable[[Outcome], None]) -> None:
        self._outcomes: dict[int, Sequence[bool]] = {}
        self._count = count
        self._done: Callable[[Outcome], None] | None = done

    def note(self, number: int, outcome: Outcome) -> None:
        """Note the outcome of one fetch."""
        if self._done is None:
            return
        if isinstance(outcome, StorageError):
            done, self._done = self._done, None
            done(outcome)
            return
        self._outcomes[number] = outcome
        if len(self._outcomes) == self._count:
            done, self._done = self._done, None
            done([present for at in range(self._count) for present in self._outcomes[at]])


def _fitting(wanted: Sequence[tuple[ShardKey, int]]) -> Iterator[list[Wanted]]:
    """Batches of the wanted shards, each of which fits into one reply."""
    batch: list[Wanted] = []
    size = 0
    for key, length in wanted:
        if batch and (size + length + 1 > MESSAGE_BYTES_MAX or len(batch) == KEYS_MAX):
            yield batch
            batch, size = [], 0
        batch.append(Wanted(key, length))
        size += length + 1
    if batch:
        yield batch


def _spread(there: Sequence[bool], done: Callable[[Outcome], None], outcome: Outcome) -> None:
    """Pass an outcome on, of fetches of only those shards that were ``there``."""
    if not isinstance(outcome, StorageError):
        present = iter(outcome)
        outcome = [one and next(present) for one in there]
    done(outcome)

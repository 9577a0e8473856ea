"""Fetches of payloads: received straight into the reader's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from storage.errors import InvalidArgument, StorageError
from taskworker.transport.frames import PRESENT, Call, Wanted, fetched_bytes, pack_wanted, parse_fetched
from taskworker.transport.shard_calls import Lane, ShardCalls
from taskworker.transport.wire.answers import Refused
from taskworker.transport.wire.connection import Connection
from taskworker.transport.wire.framing import LAST, Header, WireError

Outcome = Sequence[bool] | StorageError
"""Which payloads are in their places, or why nothing is known of any."""

# Larger answers would keep small ones waiting.
_URGENT_BYTES_MAX = 32 * 1024


class Fetch:
    """A fetch under way. See :class:`taskworker.transport.wire.connection.Answer`.

    Args:
        calls: makes the calls to the worker.
        wanted: the shards, which fit into one message.
        into: memory for each payload, with its length.
        done: called once with the outcome, also of a fetch that was cancelled; by any thread, and must not wait.
    """

    __slots__ = ("_calls", "_connection", "_done", "_into", "_message", "_number", "_states", "_wanted", "bytes_max")

    def __init__(
        self,
        calls: ShardCalls,
        wanted: Sequence[Wanted],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> None:
        self._calls = calls
        self._wanted = wanted
        self._into = into
        self._done = done
        self.bytes_max = fetched_bytes(wanted)
        self._states = bytearray(len(wanted))
        self._message: bytearray | None = None
        self._connection: Connection | None = None
        self._number = 0

    def begin(self) -> None:
        """Send the request.

        Raises:
            VolumeFailed: it cannot be sent.
        """
        self._calls.check_usable()
        lane = Lane.URGENT if self.bytes_max <= _URGENT_BYTES_MAX else Lane.FETCHES
        self._connection, self._number = self._calls.send(Call.FETCH, [pack_wanted(self._wanted)], self, lane)

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
            self._done([state == PRESENT for state in self._states])
            return
        try:
            payloads = parse_fetched(memoryview(self._message), self._wanted)
        except InvalidArgument as error:
            raise WireError(str(error)) from None
        for payload, place in zip(payloads, self._into, strict=True):
            if payload is not None:
                place[:] = payload
        self._done([payload is not None for payload in payloads])

    def refused(self, description: bytes) -> None:
        """See :class:`Answer`."""
        self.lost(Refused(description))

    def dropped(self) -> None:
        """See :class:`Answer`."""
        self._done([False] * len(self._wanted))

    def lost(self, error: Exception) -> None:
        """See :class:`Answer`."""
        self._done(self._calls.meaning(error, Call.FETCH))

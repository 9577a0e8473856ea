"""Appends that are on their way to a worker.

Each append is a frame of its own, sent by the thread that appends: from the caller's memory, as far as the kernel takes
it at once. Frames on their way are remembered by their keys, until the worker has confirmed them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Container, Iterator, Sequence

from storage.errors import StorageError
from storage.keys import ShardKey
from storage.shards import Location, Shard, VolumeFailed
from taskworker.transport.frames import FLAG_SYNC, FLAG_URGENT, AppendFrame, Call
from taskworker.transport.shard_calls import Lane, ShardCalls
from taskworker.transport.wire.answers import Refused
from taskworker.transport.wire.connection import Signal
from taskworker.transport.wire.framing import Header


class SyncTicket:
    """A running sync of a remote volume.

    Args:
        signal: for which the caller waits.
        clock_s: monotonic seconds.

    Attributes:
        size: see :class:`taskworker.transport.port.Ticket`.
        took_s: see there.
    """

    def __init__(self, signal: Signal, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.size = 0
        self._clock_s = clock_s
        self._signal = signal
        self._error: StorageError | None = None
        self._began_s = clock_s()
        self.took_s = 0.0

    def settle(self, error: StorageError | None) -> None:
        """Set the outcome."""
        self._error = error
        self.took_s = self._clock_s() - self._began_s
        self._signal.set()

    def ended_within(self, within_s: float) -> bool:
        """See :class:`taskworker.transport.port.Ticket`."""
        return self._signal.wait(max(0.0, within_s))

    def wait(self) -> None:
        """Wait until everything appended before is durable.

        Raises:
            StoreFull, VolumeUnavailable, VolumeFailed: some of it could not be stored.
        """
        self._signal.wait()
        if self._error is not None:
            raise self._error


class _Sent:
    """A frame on its way. See :class:`taskworker.transport.wire.connection.Answer`.

    Attributes:
        before: of a sync, the frames sent before it that have not been answered.
        covers: how many frames with shards had been sent, including this one.
        covers_bytes: how many bytes these had.
        outcome: of a sync, why it failed.
    """

    __slots__ = ("_sender", "before", "bytes_max", "covers", "covers_bytes", "keys", "outcome", "ticket")

    def __init__(self, sender: AppendSender, frame: AppendFrame, ticket: SyncTicket | None) -> None:
        self._sender = sender
        self.bytes_max = 0
        self.keys = frame.keys  # not the payloads, which have been sent, or copied
        self.ticket = ticket
        self.before: set[_Sent] = set()
        self.covers = self.covers_bytes = 0
        self.outcome: StorageError | None = None

    def memory(self, header: Header) -> Sequence[memoryview]:
        """See :class:`Answer`. There is nothing but the confirmation."""
        return ()

    def arrived(self, header: Header) -> None:
        """See :class:`Answer`."""
        self._sender.delivered(self, None)

    def refused(self, description: bytes) -> None:
        """See :class:`Answer`."""
        self.lost(Refused(description))

    def dropped(self) -> None:
        """See :class:`Answer`. Appends are never given up."""

    def lost(self, error: Exception) -> None:
        """See :class:`Answer`."""
        self._sender.delivered(self, error)


class AppendSender:
    """Sends appends and syncs, and knows which of them are on their way. Thread-safe.

    One condition guards the frames and the end of ``calls`` (:meth:`ShardCalls.fail`, :meth:`ShardCalls.end`). It is
    not held while a frame is being sent. Another lock is: whoever finds a shard among those on their way, and then
    syncs, must not overtake it.

    Args:
        calls: makes the calls to the worker.
        instance: name of the worker's process that is to take the shards; empty: any.
        clock_s: monotonic seconds.
    """

    def __init__(self, calls: ShardCalls, instance: bytes, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._calls = calls
        self._instance = instance
        self._order = threading.Lock()
        self._lock = threading.Lock()
        self._changed = calls.poller.room(self._lock)
        self._under_way: dict[_Sent, None] = {}  # in the order of sending
        self._syncs: list[_Sent] = []  # those whose tickets are not settled
        self._unreported: StorageError | None = None
        self._appended = 1  # frames with shards; the worker may have unsynced ones of an earlier connection
        self._synced = 0  # as many of them are durable
        self._appended_bytes = self._synced_bytes = 0  # of these frames
        self._making = 0  # calls by which the worker may be appending shards that it makes

    @property
    def needs_sync(self) -> bool:
        """Whether some shards that may be found here, under way or at the worker, are not known to be durable."""
        with self._lock:
            return self._making > 0 or self._appended > self._synced

    def begin_making(self) -> None:
        """Note that the worker may append shards of its own making from now on."""
        with self._lock:
            self._making += 1

    def end_making(self) -> None:
        """Note that such a call has ended at the worker. The shards are covered by syncs that are sent from now on."""
        with self._lock:
            self._appended += 1
            self._making -= 1

    # -- sending ---------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """Send shards, once the worker has room. A failure is raised by the next sync."""
        for frame in self._frames(shards):
            self._send(frame, FLAG_URGENT if urgent else 0, None)

    def start_sync(self, shards: Sequence[Shard] = ()) -> SyncTicket:
        """Send ``shards``, and make them and everything before durable, in one message if they fit."""
        ticket = SyncTicket(self._calls.poller.signal(), self._clock_s)
        *first, last = list(self._frames(shards)) or [AppendFrame(self._instance)]
        for frame in first:
            self._send(frame, 0, None)
        self._send(last, FLAG_SYNC, ticket)
        return ticket

    def _frames(self, shards: Sequence[Shard]) -> Iterator[AppendFrame]:
        if not shards:
            return
        frame = AppendFrame(self._instance)
        for shard in shards:
            if not frame.takes(shard):
                yield frame
                frame = AppendFrame(self._instance)
            frame.add(shard)
        yield frame

    def _send(self, frame: AppendFrame, flags: int, ticket: SyncTicket | None) -> None:
        sent = _Sent(self, frame, ticket)
        with self._order:
            with self._lock:
                self._calls.check_usable()
                self._appended += bool(frame.keys)
                self._appended_bytes += frame.size if frame.keys else 0
                sent.covers, sent.covers_bytes = self._appended, self._appended_bytes
                if ticket is not None:
                    ticket.size = self._appended_bytes - self._synced_bytes
                    sent.before = set(self._under_way)
                    sent.outcome, self._unreported = self._unreported, None
                    self._syncs.append(sent)
                self._under_way[sent] = None
            try:
                self._calls.send(Call.APPEND, frame.parts(flags), sent, Lane.APPENDS)
            except StorageError as error:
                self._settle(sent, error)

    def delivered(self, sent: _Sent, error: Exception | None) -> None:
        """Note the worker's answer to a frame, or why there is none. Called by the receiving thread."""
        self._settle(sent, None if error is None else self._calls.meaning(error, Call.APPEND))

    def _settle(self, sent: _Sent, error: StorageError | None) -> None:
        """Note the outcome of a frame, and settle the syncs that waited for it: a worker may answer out of order.

        A failure is reported by all syncs that were sent with or after the frame and have not ended; if there are none,
        by the next one.
        """
        with self._lock:
            self._under_way.pop(sent, None)
            if isinstance(error, VolumeFailed):
                self._calls.fail(error)
            reporting = [sync for sync in self._syncs if sync is sent or sent in sync.before]
            for sync in reporting:
                sync.before.discard(sent)
                sync.outcome = sync.outcome or error
            if not reporting:
                self._unreported = self._unreported or error
            ended = [sync for sync in self._syncs if not sync.before and sync not in self._under_way]
            self._syncs = [sync for sync in self._syncs if sync not in ended]
            for sync in ended:
                if sync.outcome is None:
                    self._synced = max(self._synced, sync.covers)
                    self._synced_bytes = max(self._synced_bytes, sync.covers_bytes)
            self._changed.notify_all()
        _settle_all(ended)

    # -- frames under way ------------------------------------------------------------------------

    def places(self) -> dict[ShardKey, Location]:
        """The locations of shards that are not delivered yet, with segment and offset 0."""
        with self._lock:
            return {key: place for sent in self._under_way for key, place in sent.keys.items()}

    def undelivered(self, keys: Collection[ShardKey]) -> set[ShardKey]:
        """Those of the shards that are not delivered yet."""
        with self._lock:
            return {key for sent in self._under_way for key in keys if key in sent.keys}

    def queued(self) -> list[Container[ShardKey]]:
        """The keys of these shards, one container for each frame."""
        with self._lock:
            return [sent.keys for sent in self._under_way]

    def await_delivery(self, keys: Collection[ShardKey] | None = None) -> None:
        """Wait until everything appended so far has been sent, so that the worker knows of it.

        Args:
            keys: wait only for these shards.
        """
        with self._lock:
            frames = [sent for sent in self._under_way if keys is None or any(key in sent.keys for key in keys)]
            while self._calls.failure is None and any(sent in self._under_way for sent in frames):
                self._changed.wait(self._calls.timeout_s)

    # -- ending ----------------------------------------------------------------------------------

    def fail(self, error: VolumeFailed) -> None:
        """Make all further calls fail, and everybody who waits."""
        with self._lock:
            self._calls.fail(error)
            self._under_way = {}
            syncs, self._syncs = self._syncs, []
            for sync in syncs:
                sync.outcome = self._calls.failure
            self._changed.notify_all()
        _settle_all(syncs)

    def close(self, within_s: float) -> None:
        """Take no more appends, and wait until those under way are delivered, for at most ``within_s`` seconds."""
        until_s = self._clock_s() + within_s
        with self._lock:
            self._calls.end()
            while self._under_way and self._calls.failure is None and self._clock_s() < until_s:
                self._changed.wait(until_s - self._clock_s())


def _settle_all(syncs: Sequence[_Sent]) -> None:
    for sync in syncs:
        assert sync.ticket is not None
        sync.ticket.settle(sync.outcome)

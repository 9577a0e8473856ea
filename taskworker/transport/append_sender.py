"""Appends that are on their way to a worker.

Each append is a frame of its own, sent by the thread that appends: from the caller's memory, as far as the kernel takes
it at once. Frames on their way are remembered by their keys, until the worker has confirmed them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence

from storage.errors import StorageError
from storage.keys import ShardKey
from storage.limits import BytesLike
from storage.shards import Location, Shard, VolumeFailed
from taskworker.transport.frames import FLAG_SYNC, FLAG_URGENT, AppendFrame, Call
from taskworker.transport.shard_calls import Lane, ShardCalls
from taskworker.transport.wire.answers import Refused
from taskworker.transport.wire.connection import Signal
from taskworker.transport.wire.framing import Header

_WAIT_S = 5.0  # at a time; a connection that gets nowhere fails meanwhile


class SyncTicket:
    """A running sync of a remote volume. Whoever waits for it sends it, if there was no room for it before.

    Args:
        signal: for which the caller waits.
        clock_s: monotonic seconds.

    Attributes:
        size: see :class:`taskworker.transport.port.Ticket`.
        took_s: see there.
        unsent: sends what has not been sent; None: all has been.
    """

    def __init__(self, signal: Signal, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.size = 0
        self.unsent: Unsent | None = None
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
        until_s = self._clock_s() + within_s
        return self._is_sent_within(max(0.0, within_s)) and self._signal.wait(max(0.0, until_s - self._clock_s()))

    def _is_sent_within(self, within_s: float) -> bool:
        if self.unsent is not None:
            try:
                if not self.unsent.send(within_s):
                    return False
            except StorageError as error:
                self.settle(error)
            self.unsent = None
        return True

    def leave(self) -> None:
        """See :class:`taskworker.transport.port.Ticket`."""
        if self.unsent is not None:
            unsent, self.unsent = self.unsent, None
            unsent.leave()

    def wait(self) -> None:
        """Wait until everything appended before is durable.

        Raises:
            StoreFull, VolumeUnavailable, VolumeFailed: some of it could not be stored.
        """
        self._is_sent_within(math.inf)
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
        sent_s: when it was sent.
    """

    __slots__ = ("_sender", "before", "bytes_max", "covers", "covers_bytes", "keys", "outcome", "sent_s", "ticket")

    def __init__(
        self, sender: AppendSender, keys: Mapping[ShardKey, Location], ticket: SyncTicket | None, sent_s: float
    ) -> None:
        self._sender = sender
        self.bytes_max = 0
        self.keys = keys  # not the payloads, which have been sent, or copied
        self.ticket = ticket
        self.sent_s = sent_s
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


class Unsent:
    """What is left to send of a sync. Not thread-safe.

    Args:
        sender: sends it.
        frames: what to send.
        ticket: of the sync, which the last frame begins.
    """

    def __init__(self, sender: AppendSender, frames: Iterable[AppendFrame], ticket: SyncTicket) -> None:
        self._sender = sender
        self._frames = deque(frames)
        self._ticket = ticket

    @property
    def size(self) -> int:
        """The bytes of it."""
        return sum(frame.size for frame in self._frames if frame.keys)

    def send(self, within_s: float) -> bool:
        """Send it, once the worker has room; return False if the time ran out first.

        Raises:
            StorageError: the worker cannot be used.
        """
        until_s = self._sender.clock_s() + within_s
        while self._frames:
            is_last = len(self._frames) == 1
            flags, ticket = (FLAG_SYNC, self._ticket) if is_last else (0, None)
            if not self._sender.send(self._frames[0], flags, ticket, until_s):
                return False
            self._frames.popleft()
        return True

    def leave(self) -> None:
        """Send no more of it: the sync ends once what was sent before has been answered."""
        self._sender.watch(self._ticket)


class AppendSender:
    """Sends appends and syncs, and knows which of them are on their way. Thread-safe.

    One condition guards the frames and the end of ``calls`` (:meth:`ShardCalls.fail`, :meth:`ShardCalls.end`). It is
    not held while a frame is being sent. Another lock is: whoever finds a shard among those on their way, and then
    syncs, must not overtake it. A frame is on its way from when the worker has room for it.

    Args:
        calls: makes the calls to the worker.
        instance: name of the worker's process that is to take the shards; empty: any.
        clock_s: monotonic seconds.
    """

    def __init__(self, calls: ShardCalls, instance: bytes, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.clock_s = clock_s
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

    def note_written(self) -> None:
        """Note that the worker may have shards from elsewhere. They are covered by syncs that are sent from now on."""
        with self._lock:
            self._appended += 1

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

    def offer(self, shards: Sequence[Shard], within_s: float, *, urgent: bool = False) -> Sequence[Shard]:
        """Send shards, once the worker has room; return those for which it had none in time.

        A failure is raised by the next sync.
        """
        until_s = self.clock_s() + within_s
        sent = 0
        for frame in self._frames(shards):
            if not self.send(frame, FLAG_URGENT if urgent else 0, None, until_s):
                return shards[sent:]
            sent += frame.count
        return ()

    def start_sync(self, shards: Sequence[Shard] = ()) -> SyncTicket:
        """Send ``shards``, and make them and everything before durable, in one message if they fit.

        If the worker has no room now, whoever waits for the ticket sends them.
        """
        ticket = SyncTicket(self._calls.poller.signal(), self.clock_s)
        unsent = Unsent(self, list(self._frames(shards)) or [AppendFrame(self._instance)], ticket)
        if not unsent.send(0.0):
            ticket.unsent = unsent
            with self._lock:
                ticket.size = self._appended_bytes - self._synced_bytes + unsent.size
        return ticket

    @property
    def oldest_s(self) -> float:
        """How many seconds ago the first of those frames was sent that have not been answered; 0: there is none."""
        with self._lock:
            first = next(iter(self._under_way), None)
            return 0.0 if first is None else self.clock_s() - first.sent_s

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

    def send(self, frame: AppendFrame, flags: int, ticket: SyncTicket | None, until_s: float) -> bool:
        """Send a frame, once the worker has room; return False if it had none in time.

        Args:
            frame: what to send.
            flags: see :class:`AppendFrame`.
            ticket: of the sync that it begins; None: it begins none.
            until_s: when to give up, by the clock.

        Raises:
            StorageError: the worker cannot be used.
        """
        parts = frame.parts(flags)
        size = frame.size
        while True:
            left_s = min(_WAIT_S, max(0.0, until_s - self.clock_s()))
            if self._calls.await_room(Lane.APPENDS, size, left_s):
                with self._order:
                    # Only appends use this lane, so the room is still there when the frame is sent.
                    if self._calls.await_room(Lane.APPENDS, size, 0.0):
                        self._send_now(frame, parts, ticket)
                        return True
            if self.clock_s() >= until_s:
                return False

    def _send_now(self, frame: AppendFrame, parts: Sequence[BytesLike], ticket: SyncTicket | None) -> None:
        sent = _Sent(self, frame.keys, ticket, self.clock_s())
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
            self._calls.send(Call.APPEND, parts, sent, Lane.APPENDS)
        except StorageError as error:
            self._settle(sent, error)

    def watch(self, ticket: SyncTicket) -> None:
        """Have a sync that is not sent end once all that is on its way has been answered."""
        watching = _Sent(self, {}, ticket, self.clock_s())
        with self._lock:
            watching.before = set(self._under_way)
            watching.outcome = self._calls.failure
            if watching.before and watching.outcome is None:
                self._syncs.append(watching)
                return
        ticket.settle(watching.outcome)

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
        until_s = self.clock_s() + within_s
        with self._lock:
            self._calls.end()
            while self._under_way and self._calls.failure is None and self.clock_s() < until_s:
                self._changed.wait(until_s - self.clock_s())


def _settle_all(syncs: Sequence[_Sent]) -> None:
    for sync in syncs:
        assert sync.ticket is not None
        sync.ticket.settle(sync.outcome)

"""Appends that are being sent to a worker.

While one frame is being sent, further appends are gathered in the next. So large pushes travel in large messages, and a
small one on its own is sent at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Container, Sequence

from storage.errors import StorageError
from storage.keys import ShardKey
from storage.limits import MIB
from storage.shards import Location, Shard, VolumeFailed
from taskworker.transport.frames import FLAG_SYNC, FLAG_URGENT, AppendFrame
from taskworker.transport.shard_calls import ShardCalls

# Bytes queued for one worker. Beyond this, appends wait, which bounds the pool's memory.
_QUEUED_BYTES_MAX = 4 * MIB
# Measured with 256 KiB shards: four in a message halve the cost per shard, eight gain nothing more.
_FILLED_BYTES = 900 * 1024
_FILL_S = 0.02


class SyncTicket:
    """A running sync of a remote volume.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._done = threading.Event()
        self._error: StorageError | None = None
        self._began_s = clock_s()
        self.took_s = 0.0

    def settle(self, error: StorageError | None) -> None:
        """Set the outcome."""
        self._error = error
        self.took_s = self._clock_s() - self._began_s
        self._done.set()

    def wait(self) -> None:
        """Wait until everything appended before is durable.

        Raises:
            StoreFull, VolumeUnavailable, VolumeFailed: some of it could not be stored.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error


class AppendSender:
    """A queue of frames and the thread that sends them. Thread-safe.

    One condition guards the queue, the tickets, and the end of ``calls`` (:meth:`ShardCalls.fail`,
    :meth:`ShardCalls.end`). It is not held while a frame is being sent.

    Args:
        calls: makes the calls to the worker.
        instance: name of the worker's process that is to take the shards; empty: any.
        clock_s: monotonic seconds.
    """

    def __init__(self, calls: ShardCalls, instance: bytes, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._calls = calls
        self._instance = instance
        self._changed = threading.Condition()
        self._frame = AppendFrame(instance)
        self._full: deque[AppendFrame] = deque()  # full frames, to be sent before that one
        self._delivered = 0  # number of frames whose sending has ended
        self._awaited = 0  # number of threads that wait for delivery
        self._tickets: list[SyncTicket] = []
        self._sent: AppendFrame | None = None
        self._unreported: StorageError | None = None
        self._thread = threading.Thread(target=self._send_all, name=f"append-{calls.name}", daemon=True)
        self._thread.start()

    # -- queueing --------------------------------------------------------------------------------

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        """Queue shards, once there is room. A failure is raised by the next sync."""
        with self._changed:
            while self._calls.failure is None and not self._calls.ending and self._is_crowded():
                self._changed.wait()
            self._put(shards, FLAG_URGENT if urgent else 0)

    def start_sync(self, shards: Sequence[Shard] = ()) -> SyncTicket:
        """Queue ``shards``, and make them and everything before durable, in one message if they fit."""
        ticket = SyncTicket(self._clock_s)
        with self._changed:
            self._put(shards, FLAG_SYNC)
            self._tickets.append(ticket)
        return ticket

    def _put(self, shards: Sequence[Shard], flags: int) -> None:
        self._calls.check_usable()
        for shard in shards:
            if not self._frame.takes(shard):
                self._frame.mark(flags & FLAG_URGENT)
                self._full.append(self._frame)
                self._frame = AppendFrame(self._instance)
                if self._tickets:
                    self._frame.mark(FLAG_SYNC)  # the last frame settles them
            self._frame.add(shard)
        self._frame.mark(flags)
        self._changed.notify_all()

    def _is_crowded(self) -> bool:
        return bool(self._full) or self._frame.size > _QUEUED_BYTES_MAX

    # -- frames under way ------------------------------------------------------------------------

    def places(self) -> dict[ShardKey, Location]:
        """The locations of shards that are not delivered yet, with segment and offset 0."""
        with self._changed:
            return {key: place for frame in self._on_its_way() for key, place in frame.keys.items()}

    def queued(self) -> list[Container[ShardKey]]:
        """The keys of these shards, one container for each frame."""
        with self._changed:
            return [frame.keys for frame in self._on_its_way()]

    def await_delivery(self, keys: Collection[ShardKey] | None = None) -> None:
        """Wait until everything appended so far has been sent, so that the worker knows of it.

        Args:
            keys: wait only if one of these shards is not delivered yet.
        """
        with self._changed:
            frames = self._on_its_way()
            if keys is not None and not any(key in frame.keys for frame in frames for key in keys):
                return
            until = self._delivered + len(frames)
            self._awaited += 1
            self._changed.notify_all()
            try:
                while self._calls.failure is None and self._delivered < until:
                    self._changed.wait()
            finally:
                self._awaited -= 1

    def _on_its_way(self) -> list[AppendFrame]:
        """The frames not delivered yet; the caller holds the lock."""
        sent = [self._sent] if self._sent is not None else []
        return [*sent, *self._full, *([self._frame] if self._frame.pending else [])]

    # -- sending ---------------------------------------------------------------------------------

    def _send_all(self) -> None:
        """The thread: sends one frame after another, until the connection is closed or has failed."""
        while True:
            with self._changed:
                while self._calls.failure is None and not self._on_its_way() and not self._calls.ending:
                    self._changed.wait()
                self._let_it_fill()
                if self._calls.failure is not None or not self._on_its_way():
                    return
                tickets: list[SyncTicket] = []
                if self._full:
                    frame = self._full.popleft()
                else:
                    frame, self._frame = self._frame, AppendFrame(self._instance)
                    tickets, self._tickets = self._tickets, []
                self._sent = frame
                self._changed.notify_all()
            error = self._send(frame)
            with self._changed:
                self._sent = None
                self._delivered += 1
                self._changed.notify_all()
                if isinstance(error, VolumeFailed):
                    self._fail(error)
                self._unreported = self._unreported or error
                outcome = self._unreported
                if tickets:
                    self._unreported = None
            for ticket in tickets:
                ticket.settle(outcome)

    def _let_it_fill(self) -> None:
        """Wait a moment for more shards, unless a frame is full or urgent: few large messages cost less than many."""
        until_s = self._clock_s() + _FILL_S
        while self._calls.failure is None and not self._calls.ending and not self._full and not self._awaited:
            left_s = until_s - self._clock_s()
            if self._frame.urgent or self._frame.size >= _FILLED_BYTES or left_s <= 0:
                return
            self._changed.wait(left_s)

    def _send(self, frame: AppendFrame) -> StorageError | None:
        try:
            answer = self._calls.send("Append", frame.message())
        except StorageError as error:
            return error
        return self._calls.broken(ValueError(f"{len(answer)} bytes instead of none")) if answer else None

    # -- ending ----------------------------------------------------------------------------------

    def fail(self, error: VolumeFailed) -> None:
        """Make all further calls fail, and everybody who waits."""
        with self._changed:
            self._fail(error)

    def _fail(self, error: VolumeFailed) -> None:
        self._calls.fail(error)
        tickets, self._tickets = self._tickets, []
        for ticket in tickets:
            ticket.settle(self._calls.failure)
        self._changed.notify_all()

    def close(self, within_s: float) -> None:
        """Take no more appends, and send what is queued, for at most ``within_s`` seconds."""
        with self._changed:
            self._calls.end()
            self._changed.notify_all()
        self._thread.join(within_s)

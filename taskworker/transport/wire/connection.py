"""The calling end of a connection.

A caller sends its frame itself, unless earlier ones wait; one thread receives for all connections of the process (see
:mod:`taskworker.transport.wire.poller`). Compared on 2 cores with a receiving thread for each connection: four fetches
of 1 KiB at once are as fast from one caller and a third faster from 16, with two thirds of the processor time; large
fetches are equally fast. Threads were preferred to asyncio because the engine's callers are threads: each answer would
be handed over to another thread either way.

A small call is one ``sendmsg``, and in the receiving thread one ``epoll_wait`` and two ``recv`` (the second one finds
nothing), shared by all answers that have arrived. A byte of a payload is copied by the kernel alone: from the caller's
memory when it is sent, and into the caller's memory when it is received. If the kernel's buffer is full, the rest of a
frame is copied once more, so that the caller need not wait. Small payloads of an append are gathered before, by a copy.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from storage.limits import KIB, MIB, BytesLike
from taskworker.transport.wire.framing import (
    BODY_BYTES_MAX,
    CALLS_MIN,
    LAST,
    STREAM_AHEAD,
    WELCOME_BYTES,
    Header,
    Kind,
    Welcome,
    WireError,
    check_from_server,
    pack_greeting,
    pack_header,
    parse_welcome,
)
from taskworker.transport.wire.reading import ConnectionEnded, FrameReader
from taskworker.transport.wire.sending import Outbox, bytes_of
from taskworker.transport.wire.signs import NO_OTHERS, SignsOfLife
from taskworker.transport.wire.streams import Stream, milliseconds

# A call's limit grows by what it transfers at this rate: 1 Mbit/s, shared by several calls, is slow but not dead.
_BYTES_PER_S_MIN = 16 * KIB
_NUMBERS = 1 << 32
_BEFORE_WELCOME = Welcome(BODY_BYTES_MAX, CALLS_MIN)
IDLE_S = 60.0
_LOSSES_IN_A_ROW_S = 1 + 2 + 4  # three retransmissions are lost, in multiples of the first wait for one
_PATIENCE_TIMES_MAX = 2.0  # a peer that confirms slowly on purpose gains no more
_RECEIVED_TOGETHER_BYTES = MIB
_ASKED_AGAIN_S = 0.1


class Answer(Protocol):
    """Receives the answer to one call. All methods are called by the receiving thread, and must not wait.

    Attributes:
        bytes_max: largest message that is accepted.
    """

    bytes_max: int

    def memory(self, header: Header) -> Sequence[memoryview]:
        """Memory for the next message, with exactly the length in the header."""

    def arrived(self, header: Header) -> None:
        """A message has arrived in that memory; the flag ``LAST`` in the header shows whether it is the last one."""

    def refused(self, description: bytes) -> None:
        """The other end answered with a failure. Nothing follows."""

    def dropped(self) -> None:
        """The call was given up, and its answer has been dropped. Nothing follows."""

    def lost(self, error: Exception) -> None:
        """There will be no answer, because the connection has failed. Nothing follows."""


class Poller(Protocol):
    """Calls connections when something arrives for them or they can send."""

    def add(self, connection: Connection) -> None:
        """Begin to call ``readable`` and, from time to time, ``tick``."""

    def watch_writes(self, connection: Connection, *, watch: bool) -> None:
        """Begin or stop to call ``writable`` whenever the stream takes more. The caller holds one of its locks."""

    def remove(self, connection: Connection) -> None:
        """Stop calling the connection, and close its stream when nobody uses it."""

    def room(self, lock: threading.Lock) -> Room:
        """Return where callers wait until others' calls have ended."""

    def signal(self) -> Signal:
        """Return where a caller waits for its answer."""


class Signal(Protocol):
    """Something that happens once, for which one thread waits."""

    def wait(self, within_s: float = -1) -> bool:
        """Wait until it has happened; return False if the time ran out first. Negative: wait for ever."""

    def set(self) -> None:
        """Make it happen."""


class Room(Protocol):
    """A condition that callers wait for, under the connection's lock."""

    def wait(self, within_s: float) -> bool:
        """Let the lock go until :meth:`notify_all`; return False if the time ran out first."""

    def notify_all(self) -> None:
        """Wake all who wait; the caller holds the lock."""


class _Call:
    """A call under way."""

    __slots__ = ("allowed", "answer", "bytes_max", "cancelled", "failing", "limit_s", "patience_s", "sent_s", "size")

    def __init__(self, answer: Answer, size: int, sent_s: float, patience_s: float, limit_s: float) -> None:
        self.answer = answer
        self.allowed = STREAM_AHEAD  # messages that may come, besides the last one
        self.cancelled = False
        self.bytes_max = answer.bytes_max
        self.size = size
        self.sent_s = sent_s
        self.patience_s = patience_s
        self.limit_s = limit_s
        self.failing: bytearray | None = None


class Unused(ConnectionEnded):
    """The connection ended while nobody used it, or before anything was answered. Another one can be made."""


class OutOfTime(Exception):
    """The caller's time was over before its call was sent. Nothing is wrong with the connection."""


class CallsLost(ConnectionError):
    """A connection failed because nothing was heard of a call in time."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(f"nothing was heard for {waited_s:g} s")
        self.waited_s = waited_s


def asked_again_s(left_s: Callable[[], float]) -> float:
    """For how long to wait until a caller is asked again whether it still waits.

    Raises:
        OutOfTime: it does not.
    """
    now_left_s = left_s()
    if now_left_s <= 0:
        raise OutOfTime
    return min(now_left_s, _ASKED_AGAIN_S)


class Connection:
    """Makes calls over one stream. Thread-safe. Closes itself after some time without calls.

    Args:
        stream: the stream; the connection owns it.
        lane: what the connection is used for; only helps to tell connections apart.
        poller: calls this connection when something happens.
        on_ended: called once, by any thread and under no lock, when the connection has ended.
        clock_s: monotonic seconds.
        signs: what else is heard of the peer.
        idle_s: seconds without calls after which it closes itself.
        repeats: whether all calls may be made twice. Then they end with :class:`Unused` if the other end closes a kept
            connection instead of answering, as it may have closed it before they arrived.

    Attributes:
        arrived_s: when something of this connection last arrived, at either end.
    """

    def __init__(
        self,
        stream: Stream,
        lane: int,
        poller: Poller,
        on_ended: Callable[[Exception], None] = lambda error: None,
        clock_s: Callable[[], float] = time.monotonic,
        signs: SignsOfLife = NO_OTHERS,
        idle_s: float = IDLE_S,
        repeats: bool = False,
    ) -> None:
        self.stream = stream
        self._idle_s = idle_s
        self._repeats = repeats
        self._kept_at = 0  # bytes received when it was used again; 0: it was not used before
        self._signs = signs
        self._welcome = _BEFORE_WELCOME
        self._poller = poller
        self._on_ended = on_ended
        self._clock_s = clock_s
        self._lock = threading.Lock()  # the state of the calls; taken last
        self._sending = threading.Lock()  # the outbox; held while a frame is passed to the kernel
        self._reading = threading.Lock()  # receiving; taken before the other one
        self._room = poller.room(self._lock)
        self._outbox = Outbox(stream)
        self._reader = FrameReader(stream, self._memory)
        self._calls: dict[int, _Call] = {}
        self._size = 0  # bytes of calls under way
        self._last = 0
        self._ended: Exception | None = None
        self._progress = (0, 0)
        self.arrived_s = -math.inf
        self._progress_s = self.used_s = clock_s()
        error = self._put([pack_greeting(lane)])
        poller.add(self)
        if error is not None:
            self.fail(error)

    # -- calling ---------------------------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether calls can be made."""
        return self._ended is None

    @property
    def received(self) -> int:
        """Number of bytes received so far."""
        return self._reader.received

    def call(
        self,
        method: int,
        body: Sequence[BytesLike],
        answer: Answer,
        patience_s: float,
        limit_s: float | None = None,
        left_s: Callable[[], float] | None = None,
    ) -> int:
        """Send a call, once the window has room for it.

        Args:
            method: number of the method.
            body: what to send; may be reused after this returns.
            answer: receives the answer.
            patience_s: seconds without any progress on this connection after which it counts as dead; up to three
                times as many where it takes TCP long to notice losses, or while the peer says that it is alive.
            limit_s: seconds for the whole call; default: as much more as its bytes take at 16 KiB/s.
                `math.inf`: no limit.
            left_s: for how many seconds the caller still waits for room; asked again and again. None: for ever.

        Returns:
            The number of the call, for :meth:`cancel`.

        Raises:
            CallsLost: there was no room for it in time.
            OutOfTime: the caller's time was over before.
            OSError, WireError: the connection has ended, or did so while the caller waited.
        """
        size = bytes_of(body)
        with self._lock:
            # All that is under way may have to be sent first. A connection that gets nowhere fails by itself before.
            until_s = self._clock_s() + patience_s + self._slowest_s(self._size + size)
            while self._ended is None and self._is_crowded(size):
                room_s = until_s - self._clock_s()
                if room_s <= 0:
                    raise CallsLost(patience_s)
                self._room.wait(room_s if left_s is None else min(room_s, asked_again_s(left_s)))
            if self._ended is not None:
                raise self._ended
            self._size += size
            if limit_s is None:
                limit_s = patience_s + self._slowest_s(self._size + answer.bytes_max)
            now_s = self.used_s = self._clock_s()
            if not self._calls:
                self._progress_s = now_s
                self._kept_at = self._reader.received
            number = self._next_number()
            self._calls[number] = _Call(answer, size, now_s, patience_s, limit_s)
        header = pack_header(Kind.CALL, number, size, method=method, value=milliseconds(limit_s))
        error = self._put([header, *body])
        if error is not None:
            self.fail(error)
        return number

    def await_room(self, size: int, within_s: float) -> bool:
        """Wait until the window has room for a call of this size; return False if the time ran out first.

        If the connection has ended, there is room: the next call tells why.
        """
        until_s = self._clock_s() + within_s
        with self._lock:
            while self._ended is None and self._is_crowded(size):
                left_s = until_s - self._clock_s()
                if left_s <= 0:
                    return False
                self._room.wait(left_s)
        return True

    def cancel(self, number: int) -> None:
        """Give a call up. Once this returns, nothing is written to the memory for its answer any more."""
        with self._reading:
            call = self._calls.get(number)
            if call is None or call.cancelled:
                return
            call.cancelled = True
            self._reader.divert(number)
        self._control(Kind.CANCEL, number, 0)

    def more(self, number: int, count: int) -> None:
        """Ask for more messages of an answer."""
        with self._lock:
            call = self._calls.get(number)
            if call is None:
                return  # it has ended
            call.allowed += count
        self._control(Kind.MORE, number, count)

    def _control(self, kind: Kind, number: int, value: int) -> None:
        error = self._put([pack_header(kind, number, 0, value=value)])
        if error is not None:
            self.fail(error)

    def _put(self, frame: Sequence[BytesLike]) -> OSError | None:
        """Send a frame; return the error that ends the connection, if any."""
        with self._sending:
            if self._ended is not None:
                return None
            try:
                self._outbox.put(frame)
            except OSError as error:
                return error
            if self._outbox:
                self._poller.watch_writes(self, watch=True)
        return None

    def _is_crowded(self, size: int) -> bool:
        if not self._calls:
            return False
        return self._size + size > self._welcome.window or len(self._calls) >= self._welcome.calls

    def _slowest_s(self, size: int) -> float:
        return size / _BYTES_PER_S_MIN

    def _next_number(self) -> int:
        while True:
            self._last = (self._last + 1) % _NUMBERS or 1
            if self._last not in self._calls:
                return self._last

    # -- what the poller calls -------------------------------------------------------------------

    def readable(self) -> None:
        """Receive what has arrived, and pass it on; if it is much, only a part, as other connections wait."""
        try:
            with self._reading:
                if self._welcome is _BEFORE_WELCOME and not self._greet():
                    return
                until = self._reader.received + _RECEIVED_TOGETHER_BYTES
                while self._ended is None and (header := self._reader.read(wait=False)) is not None:
                    self._pass_on(header)
                    if self._reader.received >= until and not self._reader.is_inside and not self.stream.has_more:
                        return  # the poller calls again, as nothing was received ahead
        except (OSError, WireError) as error:
            self.fail(error)

    def writable(self) -> None:
        """Send what waits, as much of it as the stream takes."""
        with self._sending:
            if self._ended is not None:
                return
            try:
                self._outbox.flush()
            except OSError as failure:
                error = failure
            else:
                if not self._outbox:
                    self._poller.watch_writes(self, watch=False)
                return
        self.fail(error)

    def tick(self) -> None:
        """Fail if a call has been waiting for too long."""
        now_s = self._clock_s()
        with self._lock:
            if self._ended is not None:
                return
            if not self._calls and now_s - self.used_s > self._idle_s:
                self._ended = Unused("the connection was not used for a while")
            progress = (self._reader.received, self._outbox.size + self.stream.unsent())
            if progress[0] > self._progress[0] or progress[1] < self._progress[1]:
                self.arrived_s = now_s
            if progress != self._progress:
                self._progress, self._progress_s = progress, now_s
            calls = list(self._calls.values())
        if self._ended is not None:
            self._wind_up(self._ended)
        progress_s = max(self._progress_s, self._signs.arrived_s())
        for call in calls:
            heard_s = max(call.sent_s, progress_s)
            overdue_s = max(now_s - heard_s - call.patience_s, now_s - call.sent_s - call.limit_s)
            if overdue_s > 0 and overdue_s > self._losing_s(call.patience_s):
                self.fail(CallsLost(call.patience_s))
                return

    def _losing_s(self, patience_s: float) -> float:
        """How much longer nothing may be heard, since TCP waits twice as long after each packet that is lost again."""
        most_s = _PATIENCE_TIMES_MAX * patience_s
        if self._clock_s() - self._signs.told_s() < patience_s:
            return most_s
        return min(_LOSSES_IN_A_ROW_S * self.stream.retransmission_s(), most_s)

    def fail(self, error: Exception) -> None:
        """End the connection, and fail all its calls. If none is under way, another connection may take its place."""
        with self._lock:
            if self._ended is not None:
                return
            if isinstance(error, OSError) and (not self._calls or self._was_closed_before(error)):
                error = Unused(str(error))
            self._ended = error
        self._wind_up(error)

    def _was_closed_before(self, error: OSError) -> bool:
        """Whether the other end may have closed a kept connection before the calls under way arrived."""
        is_kept = self._kept_at >= WELCOME_BYTES and self._kept_at == self._reader.received
        return self._repeats and is_kept and not isinstance(error, CallsLost)

    def _wind_up(self, error: Exception) -> None:
        """Let everybody know of the end, who has just noted it."""
        with self._lock:
            calls, self._calls = list(self._calls.values()), {}
            self._room.notify_all()
        self.stream.shutdown()
        with self._reading, self._sending:  # nobody uses the stream or writes to callers' memory after this
            self._reader.forget()
        self._poller.remove(self)
        for call in calls:
            call.answer.lost(error)
        self._on_ended(error)

    def forked(self) -> None:
        """Leave the connection to the parent, in a forked child, where others can be made instead."""
        self._ended = Unused("the connection belongs to the parent process")
        self.stream.close()

    def close(self) -> None:
        """End the connection."""
        self.fail(ConnectionEnded("the connection was closed"))

    def _greet(self) -> bool:
        """Read the welcome; return whether it has arrived."""
        raw = self._reader.take(WELCOME_BYTES, wait=False)
        if raw is None:
            return False
        welcome = parse_welcome(raw)
        with self._lock:
            self._welcome = welcome
            self._room.notify_all()
        return True

    def _memory(self, header: Header) -> Sequence[memoryview] | None:
        check_from_server(header)
        call = self._calls.get(header.call)
        if call is None:
            raise WireError(f"an answer to call {header.call}, which was not made")
        if header.kind == Kind.FAILURE:
            call.failing = bytearray(header.length)
            return [memoryview(call.failing)]
        if header.length > call.bytes_max:
            raise WireError(f"an answer of {header.length:,} bytes; at most {call.bytes_max:,} were asked for")
        if not header.flags & LAST:
            with self._lock:
                call.allowed -= 1
                if call.allowed < 0:
                    raise WireError("more messages of an answer than were asked for")
        return None if call.cancelled else call.answer.memory(header)

    def _pass_on(self, header: Header) -> None:
        call = self._calls.get(header.call)
        if call is None:
            return  # the connection failed meanwhile
        ends = header.kind == Kind.FAILURE or bool(header.flags & LAST)
        if ends:
            with self._lock:
                self._calls.pop(header.call, None)
                self._size -= call.size
                self._room.notify_all()
        if call.cancelled:
            if ends:
                call.answer.dropped()
        elif header.kind == Kind.FAILURE:
            call.answer.refused(bytes(call.failing or b""))
        else:
            try:
                call.answer.arrived(header)
            except Exception as error:
                if ends:  # the call is not among those that fail with the connection
                    call.answer.lost(error)
                raise

"""Calls of one worker's volume: every failure and every wrong answer becomes an error."""

from __future__ import annotations

import errno
import math
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, TypeVar

from storage.errors import InvalidArgument, StorageError, StoreClosed, StoreFull
from storage.keys import ShardKey
from storage.limits import KIB, BytesLike
from storage.shards import VolumeFailed, VolumeUnavailable
from storage.shards.port import Verdict
from taskworker.errors import TicketRefused
from taskworker.rpc import status
from taskworker.transport.frames import COUNT_MAX, MESSAGE_BYTES_MAX, Call
from taskworker.transport.wire.answers import ManyAnswers, OneAnswer, Refused
from taskworker.transport.wire.connection import (
    IDLE_S,
    Answer,
    CallsLost,
    Connection,
    OutOfTime,
    Poller,
    Unused,
    asked_again_s,
)
from taskworker.transport.wire.framing import WireError
from taskworker.transport.wire.poller import SHARED
from taskworker.transport.wire.reading import ConnectionEnded
from taskworker.transport.wire.signs import SignsOfLife
from taskworker.transport.wire.streams import Dial, dial

ResultT = TypeVar("ResultT")

# Walks and compactions read and write whole segments between two messages.
LONG_TIMEOUT_S = 600.0
_CONNECT_S_MAX = 5.0  # a lost packet is sent again after 1 s, then after 2 s more
_PATIENT_PAUSE_S = 0.1
_GIVING_UP_S = 30.0
# A connection that nobody used may have been closed; another one that is closed at once shows that something is wrong.
_DIALS_MAX = 4
# The largest answer of most calls: a location for each of 4096 keys. A worker has little time for a small answer.
_ANSWER_BYTES_MAX = 128 * KIB
# Calls that a sound worker may refuse: it keeps few verifications, and one of a former version lacks the others.
_REFUSABLE = (Call.JUDGE, Call.REST, Call.MAKE, Call.PROVE, Call.WRITTEN)
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class NotAnswered(VolumeUnavailable):
    """The worker closed a kept connection instead of answering. The call can be made again, on another one."""


class Lane(IntEnum):
    """The connections to a worker. Nothing waits behind something of another lane."""

    URGENT = 1
    """Small requests with small answers."""
    APPENDS = 2
    """Shards to store, in order."""
    FETCHES = 3
    """Large payloads."""
    LONG = 4
    """What a worker does for a while."""


class ShardCalls:
    """Calls one worker. Thread-safe, except :meth:`fail` and :meth:`end`, which are called under the sender's lock.

    Args:
        address: the address of the worker's volume, ``host:port`` or ``unix:path``.
        name: the worker's name, for texts.
        timeout_s: seconds without a sign of life after which the worker counts as away.
        poller: receives for the connections.
        dial: connects to an address.
        clock_s: monotonic seconds.
        idle_s: see :class:`taskworker.transport.wire.connection.Connection`.
        repeats: likewise; such calls end with :class:`NotAnswered`.

    Attributes:
        misbehaved: how the worker misbehaved; empty: it did not.
        failure: why no more calls can be made; None: they can.
        ending: whether the connection is being closed; queued appends are still sent.
    """

    def __init__(
        self,
        address: str,
        name: str,
        timeout_s: float,
        poller: Poller = SHARED,
        dial: Dial = dial,
        clock_s: Callable[[], float] = time.monotonic,
        idle_s: float = IDLE_S,
        repeats: bool = False,
    ) -> None:
        self._idle_s = idle_s
        self._repeats = repeats
        self.name = name
        self.timeout_s = timeout_s
        self.misbehaved = ""
        self.failure: StorageError | None = None
        self.ending = False
        self.poller = poller
        self._address = address
        self._dial = dial
        self._clock_s = clock_s
        self._lanes: dict[Lane, Connection] = {}
        self._dialling = threading.Lock()
        self._told_s = -math.inf
        self._signs = SignsOfLife(self._arrived_s, lambda: self._told_s)

    # -- the connections -------------------------------------------------------------------------

    def fail(self, error: VolumeFailed) -> None:
        """Make all further calls fail."""
        self.failure = self.failure or error

    def end(self) -> None:
        """Take no more calls, except those that send queued appends."""
        self.ending = True

    def check_usable(self) -> None:
        """Raise an error if no calls can be made."""
        if self.failure is not None:
            raise VolumeFailed(str(self.failure))
        if self.ending:
            raise StoreClosed(f"the connection to worker {self.name} is being closed")

    def disconnect(self) -> None:
        """Close all connections; running calls fail."""
        with self._dialling:
            connections = list(self._lanes.values())
        for connection in connections:
            connection.close()

    @property
    def received(self) -> int:
        """Number of bytes received on all connections that there are."""
        return sum([connection.received for connection in list(self._lanes.values())])

    @contextmanager
    def _dialling_alone(self, left_s: Callable[[], float] | None) -> Iterator[None]:
        """A context in which no other thread dials.

        Raises:
            OutOfTime: the caller's time was over before.
        """
        while not self._dialling.acquire(timeout=-1 if left_s is None else asked_again_s(left_s)):
            pass
        try:
            yield
        finally:
            self._dialling.release()

    def _lane(self, lane: Lane, left_s: Callable[[], float] | None = None) -> Connection:
        """The connection of a lane; dials if there is none, or if it was closed because nobody used it."""
        connection = self._lanes.get(lane)
        if connection is not None and connection.is_usable:
            return connection
        with self._dialling_alone(left_s):
            connection = self._lanes.get(lane)
            if connection is None or not connection.is_usable:
                if self.failure is not None:
                    raise VolumeFailed(str(self.failure))
                stream = self._dial(self._address, min(_CONNECT_S_MAX, self.timeout_s))
                try:
                    connection = Connection(
                        stream,
                        lane,
                        self.poller,
                        self._on_ended,
                        self._clock_s,
                        self._signs,
                        self._idle_s,
                        self._repeats,
                    )
                except OSError:  # the poller cannot take it
                    stream.close()
                    raise
                self._lanes[lane] = connection
            return connection

    def note_alive(self) -> None:
        """Note that the worker has just said, by other means than its answers, that it is alive."""
        self._told_s = self._clock_s()

    def _arrived_s(self) -> float:
        """When something last arrived on one of the connections, at either end."""
        return max((connection.arrived_s for connection in list(self._lanes.values())), default=-math.inf)

    def _on_ended(self, error: Exception) -> None:
        """Note that a connection failed. Others are made only for connections that nobody used."""
        if not isinstance(error, Unused):
            self.failure = self.failure or self.meaning(error)

    # -- calls -----------------------------------------------------------------------------------

    def call(
        self,
        call: Call,
        *request: BytesLike,
        timeout_s: float | None = None,
        lane: Lane = Lane.URGENT,
        bytes_max: int = _ANSWER_BYTES_MAX,
    ) -> bytes:
        """Make a call, and return the answer.

        Args:
            call: the method.
            request: parts of the request.
            timeout_s: seconds without a sign of life; default: that of this object.
            lane: the connection to use.
            bytes_max: the largest answer that can be right.
        """
        return bytes(self.call_raw(call, *request, timeout_s=timeout_s, lane=lane, bytes_max=bytes_max))

    def call_raw(
        self,
        call: Call,
        *request: BytesLike,
        timeout_s: float | None = None,
        lane: Lane = Lane.URGENT,
        bytes_max: int = _ANSWER_BYTES_MAX,
    ) -> memoryview:
        """Like :meth:`call`, without copying the answer."""
        return self.begin_call(call, *request, timeout_s=timeout_s, lane=lane, bytes_max=bytes_max)()

    def begin_call(
        self,
        call: Call,
        *request: BytesLike,
        timeout_s: float | None = None,
        lane: Lane = Lane.URGENT,
        bytes_max: int = _ANSWER_BYTES_MAX,
    ) -> Callable[[], memoryview]:
        """Send a call; return what waits for its answer, for this thread. Arguments are as for :meth:`call`."""
        self.check_usable()
        answer = OneAnswer(self.poller.signal(), bytes_max)
        self.send(call, request, answer, lane, timeout_s)

        def ended() -> memoryview:
            try:
                return memoryview(answer.wait())
            except (Refused, OSError, WireError) as error:
                raise self.meaning(error, call) from None

        return ended

    def send(
        self,
        call: Call,
        request: Sequence[BytesLike],
        answer: Answer,
        lane: Lane,
        timeout_s: float | None = None,
        limit_s: float | None = None,
        left_s: Callable[[], float] | None = None,
    ) -> tuple[Connection, int]:
        """Send a call; return the connection and the number of the call there. Works also while it is being closed.

        Args:
            call: the method.
            request: parts of the request.
            answer: receives the answer.
            lane: the connection to use.
            timeout_s: seconds without a sign of life; default: that of this object.
            limit_s: seconds for the whole call, see :meth:`Connection.call`.
            left_s: for how many seconds the caller still waits until it is sent; likewise.

        Raises:
            VolumeFailed: it cannot be sent.
            VolumeUnavailable: the caller's time was over before.
        """
        patience_s = timeout_s or self.timeout_s
        try:
            for _ in range(_DIALS_MAX):
                connection = self._lane(lane, left_s)
                try:
                    return connection, connection.call(call, request, answer, patience_s, limit_s, left_s)
                except Unused:
                    continue  # it was just closed, as nobody had used it
        except OutOfTime:
            raise self._not_asked() from None
        except (OSError, WireError) as error:
            raise self.meaning(error, call) from None
        raise self.meaning(ConnectionEnded("it closes every connection"), call)

    def connect(self, lane: Lane, left_s: Callable[[], float] | None = None) -> None:
        """Connect a lane, if it is not.

        Args:
            lane: the connection.
            left_s: for how many seconds the caller still waits while others connect. It is asked again and again.

        Raises:
            VolumeFailed: nobody answers, or not who was expected.
            VolumeUnavailable: the caller's time was over before.
        """
        try:
            self._lane(lane, left_s)
        except OutOfTime:
            raise self._not_asked() from None
        except (OSError, WireError) as error:
            raise self.meaning(error) from None

    def _not_asked(self) -> VolumeUnavailable:
        return VolumeUnavailable(f"the caller's time was over before worker {self.name} could be asked")

    def await_room(self, lane: Lane, size: int, within_s: float) -> bool:
        """Wait until a request of this size can be sent without waiting; return False if the time ran out first."""
        connection = self._lanes.get(lane)
        return connection is None or connection.await_room(size, within_s)

    def call_patiently(self, call: Call) -> bytes:
        """Like :meth:`call`, but keep trying to connect for as long as a call may take."""
        until_s = self._clock_s() + self.timeout_s
        while True:
            try:
                self._lane(Lane.URGENT)
                break
            except OSError as error:
                if self._clock_s() > until_s or self.failure is not None:
                    raise self.meaning(error) from None
                self.poller.signal().wait(_PATIENT_PAUSE_S)
        return self.call(call)

    def stream(
        self,
        call: Call,
        request: bytes,
        each_s: float = LONG_TIMEOUT_S,
        all_s: float = LONG_TIMEOUT_S,
        bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> Iterator[bytes]:
        """The messages of a stream; each may take ``each_s`` seconds, and all together ``all_s``.

        A worker that answers other calls meanwhile, but not this one, misbehaves; one that answers none is away.
        """
        try:
            yield from self.begin(call, request, each_s, all_s, bytes_max)
        except TimeoutError:
            if not self._answers():
                raise self.meaning(CallsLost(each_s), call) from None
            raise self.misbehaves(f"took longer than {each_s:g} s over a part of {call.name.title()}") from None

    def _answers(self) -> bool:
        """Whether the worker answers a small call now."""
        answer = OneAnswer(self.poller.signal(), _ANSWER_BYTES_MAX)
        try:
            self.send(Call.INSTANCE, [b""], answer, Lane.URGENT)
            answer.wait()
        except Refused:
            return True
        except (StorageError, OSError, WireError):
            return False
        return True

    def begin(self, call: Call, request: bytes, each_s: float, all_s: float, bytes_max: int) -> Iterator[bytes]:
        """Like :meth:`stream`, but the call is made at once.

        Raises:
            TimeoutError: a message has not come in time; the call was given up.
        """
        self.check_usable()
        answers = ManyAnswers(self.poller.room, bytes_max)
        # The connection would fail with the call; the caller gives it up before, which harms nobody else.
        connection, number = self.send(call, [request], answers, Lane.LONG, LONG_TIMEOUT_S, all_s + _GIVING_UP_S)
        return self._messages(call, answers, connection, number, each_s, self._clock_s() + all_s)

    def _messages(
        self, call: Call, answers: ManyAnswers, connection: Connection, number: int, each_s: float, until_s: float
    ) -> Iterator[bytes]:
        try:
            yield from answers.take(connection, number, lambda: min(each_s, until_s - self._clock_s()))
        except TimeoutError:
            raise
        except (Refused, OSError, WireError) as error:
            raise self.meaning(error, call) from None

    # -- errors ----------------------------------------------------------------------------------

    def meaning(self, error: Exception, call: Call | None = None) -> StorageError:
        """The error that a failed call or connection means.

        The volume becomes unusable, unless the error is a full disk, a temporary failure or a permitted refusal.
        """
        if self.failure is not None:
            return VolumeFailed(str(self.failure))
        if isinstance(error, Refused):
            return self._refusal(error.description, call)
        if isinstance(error, WireError):
            return self.broken(error)
        if isinstance(error, Unused):
            return NotAnswered(f"worker {self.name} closed the connection before it answered")
        if isinstance(error, CallsLost):
            return VolumeFailed(f"worker {self.name} took longer than {error.waited_s:g} s to answer")
        if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
            return VolumeUnavailable(f"worker {self.name} cannot be called now: {error.strerror} in this process")
        return VolumeFailed(f"worker {self.name} does not answer at {self._address}")

    def _refusal(self, description: bytes, call: Call | None) -> StorageError:
        kind, _, text = description.decode("utf-8", "replace").partition("\0")
        failure = status.error_of(kind, text)
        if isinstance(failure, StoreFull) or (isinstance(failure, InvalidArgument) and call in _REFUSABLE):
            return failure
        if isinstance(failure, TicketRefused):  # for these shards; it may take other tickets
            return VolumeUnavailable(f"worker {self.name}: {failure}")
        if isinstance(failure, VolumeUnavailable):  # it lacks descriptors, for example; the volume stays usable
            return VolumeUnavailable(f"worker {self.name}: {failure}")
        return VolumeFailed(f"worker {self.name}: {failure}")

    def checked(self, parse: Callable[[], ResultT]) -> ResultT:
        """Call ``parse`` on an answer, and return its result.

        If it raises ``InvalidArgument``, the worker counts as broken.
        """
        try:
            return parse()
        except InvalidArgument as error:
            raise self.broken(error) from None

    def number(self, form: struct.Struct, message: bytes) -> tuple[Any, ...]:
        """Unpack the numbers in an answer."""
        if len(message) != form.size:
            raise self.broken(ValueError(f"{len(message)} bytes instead of {form.size}"))
        return form.unpack(message)

    def believable(self, number: int) -> int:
        """Check a number of bytes or shards that one machine could have; the sum of a thousand fits into 64 bits."""
        if not 0 <= number <= COUNT_MAX:
            raise self.broken(ValueError(f"the number {number}"))
        return number

    def verdicts(self, answer: bytes, keys: Sequence[ShardKey]) -> list[Verdict]:
        """The verdicts on these shards, from an answer."""
        if len(answer) != len(keys) or max(answer, default=0) > max(Verdict):
            raise self.broken(ValueError("verdicts that do not fit the keys"))
        return [Verdict(verdict) for verdict in answer]

    def broken(self, error: Exception) -> VolumeFailed:
        """Note that an answer cannot be right, and return the error for it."""
        self.misbehaved = self.misbehaved or str(error)
        return VolumeFailed(f"worker {self.name} answers nonsense: {error}")

    def misbehaves(self, how: str) -> VolumeFailed:
        """Note that the worker keeps its caller waiting as no sound one does, and return the error for it."""
        self.misbehaved = how
        return VolumeFailed(f"worker {self.name} {how}")

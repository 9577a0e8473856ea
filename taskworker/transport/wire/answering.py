"""One connection of a server: reads calls, has them carried out, and sends the answers."""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from enum import Enum
from typing import NamedTuple, Protocol, cast

from storage.limits import KIB, MIB, BytesLike
from taskworker.transport.wire.budget import Budget
from taskworker.transport.wire.framing import BODY_BYTES_MAX as WINDOW_BYTES
from taskworker.transport.wire.framing import (
    FAILURE_BYTES_MAX,
    GREETING_BYTES,
    LAST,
    STREAM_AHEAD,
    STREAM_AHEAD_MAX,
    Header,
    Kind,
    WireError,
    check_from_client,
    choose_version,
    pack_header,
    pack_welcome,
)
from taskworker.transport.wire.reading import ConnectionEnded, FrameReader, NotNow
from taskworker.transport.wire.sending import bytes_of, rest_of
from taskworker.transport.wire.streams import Stream

log = logging.getLogger(__name__)

CALLS_MAX = 256
"""How many calls may be under way on a connection."""
_QUEUED_BYTES_MAX = 64 * KIB  # of calls read ahead; a larger one is carried out at once
_KEPT_BYTES_MAX = MIB  # memory for bodies that a connection in use keeps
_GREETING_S = 10.0
# A peer from which nothing comes in the middle of a frame, or that takes nothing of an answer, is as good as away.
_STALLED_S = 20.0
_NOT_ASKED_S = 600.0  # a caller that takes that long over a message of a stream has forgotten it
_BYTES_PER_S_MIN = 16 * KIB
_HOGGING_BYTES_PER_S = 256 * KIB
_ZEROS = memoryview(bytes(64 * KIB))
_OWN_ERRORS = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.EBADF)


class FilePart(NamedTuple):
    """Bytes of an open file, as a part of an answer.

    Attributes:
        file: keeps the file open.
        descriptor: its descriptor.
        offset: where the bytes begin.
        length: their number.
        failed: called if they cannot all be read; zeros are sent in the place of the rest.
    """

    file: object
    descriptor: int
    offset: int
    length: int
    failed: Callable[[], None]


Parts = Sequence["BytesLike | FilePart"]


class Style(Enum):
    """How a method is carried out."""

    QUICK = "in the thread that reads the connection, so that other calls on it wait"
    SLOW = "in a thread of its own"
    STREAM = "in a thread of its own, with many messages"


class Caller(Protocol):
    """The caller that waits for an answer."""

    def is_active(self) -> bool:
        """Whether it still waits."""


class Method(NamedTuple):
    """A method of a server.

    Attributes:
        name: for the log.
        style: how it is carried out. A function decides by the call's body.
        serve: (body, caller) → the answer's parts; for a stream, an iterator of them. The body's memory is used again
            when this has returned.
    """

    name: str
    style: Style | Callable[[memoryview], Style]
    serve: Callable[[memoryview, Caller], Parts] | Callable[[memoryview, Caller], Iterator[Parts]]

    def style_of(self, body: memoryview) -> Style:
        """How this call is carried out."""
        return self.style if isinstance(self.style, Style) else self.style(body)


class Surroundings(Protocol):
    """What a connection needs of its server."""

    def watch(self, connection: AnsweringConnection) -> None:
        """Call the connection again when something arrives for it."""

    def starve(self, connection: AnsweringConnection) -> None:
        """Call the connection again when memory was freed."""

    def feed(self) -> None:
        """Call connections that wait for memory."""

    def forget(self, connection: AnsweringConnection) -> None:
        """Close the connection, which nobody uses any more."""


class _Serving:
    """A call that is being carried out. See :class:`Caller`."""

    __slots__ = ("_clock_s", "_until_s", "allowed", "body", "cancelled", "changed", "header", "memory")

    def __init__(self, header: Header, body: memoryview, memory: bytearray, clock_s: Callable[[], float]) -> None:
        self.header = header
        self.body = body
        self.memory = memory
        self.cancelled = False
        self.allowed = STREAM_AHEAD
        self.changed: threading.Condition | None = None
        self._clock_s = clock_s
        self._until_s = clock_s() + header.value / 1000 if header.value else None

    def is_active(self) -> bool:
        """See :class:`Caller`."""
        return not self.cancelled and (self._until_s is None or self._clock_s() < self._until_s)


class AnsweringConnection:
    """Serves one stream. :meth:`run` is called by one thread at a time; it returns when nothing more has arrived.

    Args:
        stream: the stream; the connection owns it.
        methods: what to serve, by number.
        describe: how an error of a method travels.
        server: calls :meth:`run` again.
        memory: bounds the bodies of all connections.
        slow: runs what may take long.
        clock_s: monotonic seconds.

    Attributes:
        heard_s: when something last arrived.
    """

    def __init__(
        self,
        stream: Stream,
        methods: Mapping[int, Method],
        describe: Callable[[Exception], bytes],
        server: Surroundings,
        memory: Budget,
        slow: Executor,
        clock_s: Callable[[], float],
    ) -> None:
        self.descriptor = stream.fileno()
        self._stream = stream
        self._methods = methods
        self._describe = describe
        self._server = server
        self._memory = memory
        self._slow = slow
        self._clock_s = clock_s
        self._reader = FrameReader(stream, self._open_body)
        self._sending = threading.Lock()
        self._lock = threading.Lock()  # guards the state below
        self._serving: dict[int, _Serving] = {}
        self._queue: deque[_Serving] = deque()
        self._queued = 0  # bytes
        self._running = False
        self._ended = False
        self._greeted = False
        self._kept: bytearray | None = bytearray()
        self._body: bytearray | None = None
        self._body_length = 0
        self._body_since_s = 0.0
        self._received = 0
        self.heard_s = self._began_s = clock_s()

    # -- what the server asks --------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a call is being carried out."""
        return bool(self._serving)

    def is_stuck(self, now_s: float) -> bool:
        """Whether the other end stopped in the middle of a frame, sends one too slowly, or never greeted."""
        if not self._greeted:
            return now_s - self._began_s > _GREETING_S
        if self._reader.starved or not self._reader.is_inside or self._serving:
            return False
        if now_s - self.heard_s > _STALLED_S:
            return True
        return self._body is not None and now_s - self._body_since_s > (
            _STALLED_S + self._body_length / _BYTES_PER_S_MIN
        )

    def hogged(self, now_s: float) -> int:
        """How many bytes of memory it holds for a body that arrives slowly; 0 if it holds none or is fast."""
        if self._body is None or now_s - self._body_since_s < 2:
            return 0
        slow = self._received < _HOGGING_BYTES_PER_S * (now_s - self._body_since_s)
        return self._body_length if slow else 0

    def end(self) -> None:
        """End the connection, by any thread. Calls under way lose their caller."""
        self._ended = True
        with self._lock:
            for serving in self._serving.values():
                serving.cancelled = True
                if serving.changed is not None:
                    with serving.changed:
                        serving.changed.notify_all()
        self._stream.shutdown()  # wakes the thread that reads, or the one that waits for all connections

    def close(self) -> None:
        """Close the stream. Nobody uses the connection any more."""
        self._drop_body()
        self._stream.close()

    # -- reading ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until nothing more has arrived for a moment."""
        try:
            self._running = True
            ended = self._serve_on()
        except (ConnectionEnded, OSError):
            ended = True
        except WireError as error:
            log.warning("a connection was closed: %s", error)
            ended = True
        except Exception:
            log.exception("a connection failed unexpectedly")
            ended = True
        if not ended:
            return
        self.end()
        with self._lock:
            self._running = False
            unused = not self._serving
        if unused:
            self._server.forget(self)

    def _serve_on(self) -> bool:
        """Return whether the connection has ended; False if the server will call again."""
        if not self._greeted and not self._greet():
            return self._leave()
        while not self._ended:
            header = self._reader.read(wait=not self._queue)
            if header is not None:
                self._take(header)
                if self._reader.is_inside and self._queued < _QUEUED_BYTES_MAX:
                    continue  # more has arrived, maybe the end of a call that waits
            elif not self._queue:
                return self._leave()
            if self._queue:
                self._carry_out(self._queue.popleft())
        return True

    def _leave(self) -> bool:
        """Have the server call again; it may do so before this returns."""
        starved = self._reader.starved
        self._kept = None if self._body is None else self._kept
        if self._ended:
            return True
        if starved:
            self._server.starve(self)
        else:
            self._server.watch(self)
        return False

    def _greet(self) -> bool:
        raw = self._reader.take(GREETING_BYTES, wait=True)
        if raw is None:
            return False
        version = choose_version(raw)
        self._send_all([pack_welcome(version, WINDOW_BYTES, CALLS_MAX)])
        if not version:
            raise WireError("the caller speaks other versions of the protocol only")
        self._greeted = True
        self.heard_s = self._clock_s()
        return True

    def _open_body(self, header: Header) -> Sequence[memoryview]:
        check_from_client(header)
        if header.kind != Kind.CALL:
            return ()
        if header.call in self._serving or len(self._serving) >= CALLS_MAX:
            raise WireError(f"call {header.call} is under way already, or one of more than {CALLS_MAX}")
        if not self._memory.take(header.length):
            raise NotNow
        kept, self._kept = self._kept, None
        if kept is None or len(kept) < header.length:
            kept = bytearray(header.length)
        self._body, self._body_length = kept, header.length
        self._body_since_s, self._received = self._clock_s(), 0
        return [memoryview(kept)[: header.length]]

    def _drop_body(self) -> None:
        """Give back the memory of a body that did not arrive completely."""
        if self._body is not None:
            self._body = None
            if self._memory.give_back(self._body_length):
                self._server.feed()

    def _take(self, header: Header) -> None:
        """Take a frame that has arrived."""
        self.heard_s = self._clock_s()
        if header.kind == Kind.CALL:
            memory, self._body = self._body, None
            assert memory is not None
            serving = _Serving(header, memoryview(memory)[: header.length], memory, self._clock_s)
            with self._lock:
                self._serving[header.call] = serving
            self._queue.append(serving)
            self._queued += header.length
            return
        found = self._serving.get(header.call)
        if found is None:
            return
        if header.kind == Kind.CANCEL:
            found.cancelled = True
        else:
            found.allowed = min(found.allowed + header.value, STREAM_AHEAD_MAX)
        if found.changed is not None:
            with found.changed:
                found.changed.notify_all()

    # -- carrying out ----------------------------------------------------------------------------

    def _carry_out(self, serving: _Serving) -> None:
        self._queued -= serving.header.length
        method = self._methods.get(serving.header.method)
        if method is None:
            self._refuse(serving, WireError(f"there is no method {serving.header.method}"))
            self._finish(serving)
        elif (style := method.style_of(serving.body)) is Style.QUICK:
            self._answer(method, serving)
        else:
            if style is Style.STREAM:
                serving.changed = threading.Condition()
            try:
                self._slow.submit(self._answer, method, serving)
            except RuntimeError:  # the server is stopping
                self._finish(serving)

    def _answer(self, method: Method, serving: _Serving) -> None:
        try:
            if serving.changed is not None:
                self._send_stream(serving, cast(Iterator[Parts], method.serve(serving.body, serving)))
            elif serving.is_active():
                self._send_answer(serving, cast(Parts, method.serve(serving.body, serving)))
            else:
                self._send_answer(serving, ())
        except _SendFailed:
            self.end()
        except Exception as error:
            with suppress(_SendFailed):
                self._refuse(serving, error)
        finally:
            self._finish(serving)

    def _finish(self, serving: _Serving) -> None:
        serving.body.release()
        length = serving.header.length
        if self._kept is None and len(serving.memory) <= _KEPT_BYTES_MAX and not self._ended:
            self._kept = serving.memory
        with self._lock:
            self._serving.pop(serving.header.call, None)
            last = self._ended and not self._serving and not self._running
        if self._memory.give_back(length):
            self._server.feed()
        if last:
            self._server.forget(self)

    def _send_stream(self, serving: _Serving, messages: Iterator[Parts]) -> None:
        assert serving.changed is not None
        try:
            for message in messages:
                self._await_more(serving, serving.changed)
                if not serving.is_active() or self._ended:
                    break
                self._send_frame(serving, message, 0)
        finally:
            close = getattr(messages, "close", None)
            if close is not None:
                close()
        self._send_frame(serving, (), LAST)

    def _await_more(self, serving: _Serving, changed: threading.Condition) -> None:
        """Wait until the caller takes one more message."""
        until_s = self._clock_s() + _NOT_ASKED_S
        with changed:
            while not serving.allowed and serving.is_active() and not self._ended:
                if self._clock_s() > until_s:
                    raise _SendFailed
                changed.wait(1.0)
            serving.allowed -= 1

    def _send_answer(self, serving: _Serving, parts: Parts) -> None:
        self._send_frame(serving, parts, LAST)

    def _refuse(self, serving: _Serving, error: Exception) -> None:
        text = self._describe(error)[:FAILURE_BYTES_MAX]
        self._send_all([pack_header(Kind.FAILURE, serving.header.call, len(text)), text])

    # -- sending ---------------------------------------------------------------------------------

    def _send_frame(self, serving: _Serving, parts: Parts, flags: int) -> None:
        plain: list[BytesLike] = []
        length = 0
        pieces: list[list[BytesLike] | FilePart] = [plain]
        for part in parts:
            if isinstance(part, FilePart):
                length += part.length
                pieces.append(part)
                plain = []
                pieces.append(plain)
            else:
                plain.append(part)
                length += bytes_of([part])
        first = pieces[0]
        assert isinstance(first, list)
        first.insert(0, pack_header(Kind.ANSWER, serving.header.call, length, flags=flags))
        with self._sending:
            for at, piece in enumerate(pieces):
                if isinstance(piece, FilePart):
                    self._send_file(piece)
                elif piece:
                    self._send(piece, more=at < len(pieces) - 1)

    def _send_all(self, parts: Sequence[BytesLike]) -> None:
        with self._sending:
            self._send(parts, more=False)

    def _send(self, parts: Sequence[BytesLike], *, more: bool) -> None:
        stalled = _Stall(self._clock_s)
        try:
            sent, total = self._stream.send(parts, wait=True, more=more), bytes_of(parts)
            while sent < total:
                stalled.note(sent)
                if self._ended:
                    raise _SendFailed
                sent += self._stream.send(rest_of(parts, sent), wait=True, more=more)
        except OSError as error:
            raise _SendFailed from error

    def _send_file(self, part: FilePart) -> None:
        stalled = _Stall(self._clock_s)
        sent, intact = 0, True
        while sent < part.length:
            if self._ended:
                raise _SendFailed
            try:
                if intact:
                    count = self._stream.send_file(part.descriptor, part.offset + sent, part.length - sent)
                else:
                    count = self._stream.send([_ZEROS[: part.length - sent]], wait=True, more=True)
            except EOFError:
                intact = False
                part.failed()
                continue
            except OSError as error:
                if not intact or error.errno in _OWN_ERRORS:
                    raise _SendFailed from error
                intact = False
                part.failed()
                continue
            sent += count
            stalled.note(sent)


class _SendFailed(Exception):
    """An answer cannot be sent: the connection is broken, or the other end takes nothing."""


class _Stall:
    """Notes when sending last got on."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._sent = -1
        self._since_s = clock_s()

    def note(self, sent: int) -> None:
        """Note how much was sent so far; raise an error if that is no more than long ago."""
        if sent != self._sent:
            self._sent, self._since_s = sent, self._clock_s()
        elif self._clock_s() - self._since_s > _STALLED_S:
            raise _SendFailed

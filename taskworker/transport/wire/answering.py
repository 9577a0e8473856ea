"""One connection of a server: reads calls, has them carried out, and sends the answers.

No thread waits for a caller for longer than a moment while others wait for a thread. What is not taken of an answer,
and a stream of which no more was asked for, wait without one.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Protocol, cast

from storage.limits import KIB, MIB
from taskworker.errors import CallAbandoned
from taskworker.transport.wire.arriving import STALLED_S, ArrivingBody
from taskworker.transport.wire.body_memory import BodyMemory
from taskworker.transport.wire.framing import BODY_BYTES_MAX as WINDOW_BYTES
from taskworker.transport.wire.framing import (
    FAILURE_BYTES_MAX,
    GREETING_BYTES,
    LAST,
    STREAM_AHEAD_MAX,
    Header,
    Kind,
    WireError,
    check_from_client,
    choose_version,
    pack_header,
    pack_welcome,
)
from taskworker.transport.wire.outgoing import Outgoing, Parts, SendFailed, length_of
from taskworker.transport.wire.reading import ConnectionEnded, FrameReader, NotNow
from taskworker.transport.wire.serving import Method, Resources, Serving, Style
from taskworker.transport.wire.strangers import Standing
from taskworker.transport.wire.streams import Stream

log = logging.getLogger(__name__)

CALLS_MAX = 256
"""How many calls a caller is told that may be under way on a connection."""
# A call counts here until shortly after its answer was sent, so a sound caller may seem to have more under way.
_CALLS_TAKEN_MAX = 2 * CALLS_MAX
_SLOW_MAX = 8  # of them carried out at once, so that other connections have a part of the threads
# After so many frames or messages, others that wait for a thread get it.
_FRAMES_A_TURN = 16
_MESSAGES_A_TURN = 8
_QUEUED_BYTES_MAX = 64 * KIB  # of calls read ahead; a larger one is carried out at once
_KEPT_BYTES_MAX = MIB  # memory for bodies that a connection in use keeps
CALL_BYTES = 2 * KIB
"""What a call costs besides its body, in bytes of memory."""
_GREETING_S = 10.0
_NOT_ASKED_S = 600.0  # a caller that takes that long over a message of a stream has forgotten it


class Surroundings(Protocol):
    """What a connection needs of its server."""

    @property
    def is_crowded(self) -> bool:
        """Whether connections wait for a thread."""

    def watch(self, connection: AnsweringConnection, *, writes: bool) -> None:
        """Call the connection again when something arrives for it; or, for ``writes``, when its caller takes more."""

    def call_soon(self, connection: AnsweringConnection) -> None:
        """Call the connection again after others that wait for a thread."""

    def forget(self, connection: AnsweringConnection) -> None:
        """Close the connection, which nobody uses any more."""


class AnsweringConnection:
    """Serves one stream. :meth:`run` may be called whenever there may be something to do.

    Args:
        stream: the stream; the connection owns it.
        methods: what to serve, by number.
        describe: how an error of a method travels.
        server: calls :meth:`run` again.
        resources: shared with other connections.
        allowed: chooses the methods that the caller may call, once it has greeted.
        host: where the caller is.

    Attributes:
        host: see above.
        began_s: when it was accepted.
        heard_s: when a frame last arrived.
        is_greeted: whether the caller has greeted.
        standing: whether the caller has shown that it may do something here.
    """

    def __init__(
        self,
        stream: Stream,
        methods: Mapping[int, Method],
        describe: Callable[[Exception], bytes],
        server: Surroundings,
        resources: Resources,
        allowed: Callable[[Mapping[int, Method], Stream], Mapping[int, Method]] = lambda methods, _stream: methods,
        host: str = "",
    ) -> None:
        self._allowed = allowed
        self.host = host
        self.descriptor = stream.fileno()
        self._stream = stream
        self._methods = methods
        self._describe = describe
        self._server = server
        self._memory, answers, self._slow, self._streams, self._clock_s, self._body_bytes_max = resources[:6]
        self._strangers_body_bytes_max = resources.strangers_body_bytes_max
        self._of_strangers = resources.strangers_bodies or self._memory
        self._awaited: BodyMemory | None = None
        self._reader = FrameReader(stream, self._open_body)
        self._outgoing = Outgoing(stream, answers, lambda: server.is_crowded, self._clock_s)
        self._lock = threading.Lock()  # guards the state below, except what only the running thread uses
        self._serving: dict[int, Serving] = {}
        self._queue: deque[Serving] = deque()  # the running thread's
        self._queued = 0  # bytes
        self._slow_queue: deque[tuple[Method, Serving]] = deque()
        self._slow_places = _SLOW_MAX
        self._running = self._again = self._yields = False
        self._ended = False
        self.is_greeted = False
        self._kept: bytearray | None = None
        self._body: ArrivingBody | None = None
        self.heard_s = self.began_s = self._progress_s = self._clock_s()
        self.standing = Standing(self.began_s)
        self._progress = 0

    # -- what the server asks --------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a call is being carried out, or an answer is being sent."""
        return bool(self._serving) or self._outgoing.is_blocked

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._ended

    def is_stuck(self, now_s: float) -> bool:
        """Whether the other end stopped in the middle of something, is too slow for any use, or never greeted."""
        if not self.is_greeted:
            return now_s - self.began_s > _GREETING_S
        if self._outgoing.is_stuck(now_s):
            return True
        if self._reader.received != self._progress or not self._reader.is_inside or self._reader.starved:
            self._progress, self._progress_s = self._reader.received, now_s
        if self._outgoing.is_blocked or self._serving:
            return False  # it is not read from, or need not send
        if now_s - self._progress_s > STALLED_S:
            return self._reader.is_inside
        return self._body is not None and self._body.is_too_slow(now_s)

    def hogged(self, now_s: float) -> int:
        """How many bytes of memory it holds for a body that arrives slowly; 0 if it holds none or is fast."""
        body = self._body
        return 0 if body is None else body.hogged(now_s, self._reader.received)

    def wake_streams(self, now_s: float) -> None:
        """Let streams end whose callers are not there any more, or have forgotten them."""
        if not self._serving:
            return
        with self._lock:
            parked = [serving for serving in self._serving.values() if serving.parked_s is not None]
            forgotten = any(now_s - (serving.parked_s or now_s) > _NOT_ASKED_S for serving in parked)
        if forgotten:
            self.end()
        self._resume([serving for serving in parked if not serving.is_active()])

    def holds_of(self, memory: BodyMemory) -> bool:
        """Whether it holds some of this memory for a body that is arriving."""
        body = self._body
        return body is not None and body.charge.memory is memory

    def go_on(self) -> None:
        """See :class:`Taker`."""
        self._server.call_soon(self)

    def is_with(self, judge: Callable[[Stream], bool]) -> bool:
        """Whether the stream is one that ``judge`` says yes to."""
        return judge(self._stream)

    def end(self) -> None:
        """End the connection, by any thread. Calls under way lose their caller."""
        with self._lock:
            before, self._ended = self._ended, True
            for serving in self._serving.values():
                serving.cancelled = True
            parked = [serving for serving in self._serving.values() if serving.parked_s is not None]
        if not before:  # later, its descriptor may be another connection's
            self._stream.shutdown()  # wakes the thread that reads, or the one that waits for all connections
        self._resume(parked)

    def close(self) -> None:
        """Close the stream. Nobody uses the connection any more."""
        self._reader.forget()
        self._drop_body()
        if self._awaited is not None:
            self._awaited.leave(self)
        self._outgoing.drop()
        self._stream.close()

    # -- running ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Send what waits, and serve until nothing more has arrived for a moment."""
        with self._lock:
            if self._running:
                self._again = True
                return
            self._running = True
        while self._turn():
            with self._lock:
                if self._ended:
                    break
                if not self._again:
                    self._running = False
                    self._kept = None
                    self._rest()
                    return
                self._again = False
        self.end()
        for serving in self._queue:
            self._finish(serving)
        self._queue.clear()
        with self._lock:
            self._running = False
            unused = not self._serving
        if unused:
            self._server.forget(self)

    def _turn(self) -> bool:
        """Do what can be done now; return whether the connection goes on."""
        try:
            if self._ended:
                return False
            if self._flush():
                self._serve_on()
        except (ConnectionEnded, OSError, SendFailed):
            return False
        except WireError as error:
            log.warning("a connection was closed: %s", error)
            return False
        except Exception:
            log.exception("a connection failed unexpectedly")
            return False
        return not self._ended

    def _rest(self) -> None:
        """Have the server call again, under the lock."""
        if self._outgoing.is_blocked:
            self._server.watch(self, writes=True)
        elif self._yields:
            self._server.call_soon(self)
        elif not self._reader.starved:
            self._server.watch(self, writes=False)

    def _flush(self) -> bool:
        """Send what waits, without waiting for the caller; return whether that is all."""
        if not self._outgoing.is_blocked:
            return True
        if not self._outgoing.flush(wait=False):
            return False
        with self._lock:
            ready = [each for each in self._serving.values() if each.parked_s is not None and each.allowed]
        self._resume(ready)
        return True

    # -- reading ---------------------------------------------------------------------------------

    def _serve_on(self) -> None:
        self._yields = False
        if not self.is_greeted and not self._greet():
            return
        turns, reader = 0, self._reader
        while not self._ended and not self._outgoing.is_blocked:
            turns += 1
            if turns > _FRAMES_A_TURN and self._server.is_crowded:
                self._yields = True
                return
            before = reader.received
            header = reader.read(wait=not self._queue and not self._server.is_crowded)
            if header is not None:
                self._take(header)
                if reader.is_inside and self._queued < _QUEUED_BYTES_MAX:
                    continue  # more has arrived, maybe the end of a call that waits
            elif not self._queue and (reader.starved or reader.received == before):
                return
            if self._queue:
                self._carry_out(self._queue.popleft())

    def _greet(self) -> bool:
        raw = self._reader.take(GREETING_BYTES, wait=not self._server.is_crowded)
        if raw is None:
            return False
        version = choose_version(raw)
        self._outgoing.put([pack_welcome(version, WINDOW_BYTES, CALLS_MAX)])
        if not version:
            raise WireError("the caller speaks other versions of the protocol only")
        self._methods = self._allowed(self._methods, self._stream)
        self.is_greeted = True
        self.heard_s = self._clock_s()
        return True

    def _open_body(self, header: Header) -> Sequence[memoryview]:
        check_from_client(header)
        if header.kind != Kind.CALL:
            return ()
        most = self._body_bytes_max if self.standing.is_proven else self._strangers_body_bytes_max
        if header.length > most:
            raise WireError(f"a call of {header.length:,} bytes; at most {most:,} are taken here")
        if header.call in self._serving or len(self._serving) >= _CALLS_TAKEN_MAX:
            raise WireError(f"call {header.call} is under way already, or one of more than {CALLS_MAX}")
        memory = self._awaited or (self._memory if self.standing.is_proven else self._of_strangers)
        charge = memory.take(self, header.length + CALL_BYTES)
        self._awaited = memory if charge is None else None
        if charge is None:
            raise NotNow
        kept, self._kept = self._kept, None
        if kept is None or len(kept) < header.length:
            kept = bytearray(header.length)
        self._body = ArrivingBody(kept, header.length, charge, self._clock_s(), self._reader.received)
        return [memoryview(kept)[: header.length]]

    def _drop_body(self) -> None:
        """Give back the memory of a body that did not arrive completely."""
        body, self._body = self._body, None
        if body is not None:
            body.charge.give_back()

    def _take(self, header: Header) -> None:
        """Take a frame that has arrived."""
        self.heard_s = self._clock_s()
        if header.kind == Kind.CALL:
            body, self._body = self._body, None
            assert body is not None
            serving = Serving(header, body.memory, body.charge, self._clock_s)
            with self._lock:
                self._serving[header.call] = serving
            self._queue.append(serving)
            self._queued += header.length
            return
        with self._lock:
            found = self._serving.get(header.call)
            if found is None:
                return
            if header.kind == Kind.CANCEL:
                found.cancelled = True
            else:
                found.allowed = min(found.allowed + header.value, STREAM_AHEAD_MAX)
            parked = found.parked_s is not None
        if parked:
            self._resume([found])

    # -- carrying out ----------------------------------------------------------------------------

    def _carry_out(self, serving: Serving) -> None:
        self._queued -= serving.header.length
        try:
            method = self._methods.get(serving.header.method)
            if method is None:
                raise WireError(f"there is no method {serving.header.method}")
            style = method.style_of(serving.body)
        except Exception as error:
            self._refuse(serving, error)
            self._finish(serving)
            return
        if style is Style.QUICK:
            self._answer(method, serving)
        elif style is Style.SLOW:
            with self._lock:
                self._slow_queue.append((method, serving))
            self._begin_slow()
        else:
            self._submit(self._streams, self._go_on, method, serving)

    def _begin_slow(self) -> None:
        """Have slow calls carried out, as many as this connection may at once."""
        with self._lock:
            if not self._slow_places or not self._slow_queue:
                return
            self._slow_places -= 1
            method, serving = self._slow_queue.popleft()
        serving.slow = True
        self._submit(self._slow, self._answer, method, serving)

    def _submit(
        self, threads: Executor, work: Callable[[Method, Serving], None], method: Method, serving: Serving
    ) -> None:
        try:
            threads.submit(work, method, serving)
        except RuntimeError:  # the server is stopping
            self._finish(serving)

    def _answer(self, method: Method, serving: Serving) -> None:
        """Carry a call out, and send its answer."""
        try:
            if serving.cancelled:
                self._put(serving, (), LAST)
            else:
                self._require_time(serving)
                parts = cast(Parts, method.serve(serving.body, serving))
                self.standing.succeeded()
                self._put(serving, parts, LAST)
        except Exception as error:
            self._refuse(serving, error)
        finally:
            self._finish(serving)

    def _require_time(self, serving: Serving) -> None:
        """An answer that says nothing would be taken for a good one."""
        if serving.is_late and not serving.cancelled:
            raise CallAbandoned("the time of the call had run out before it was carried out; nothing was changed")

    def _go_on(self, method: Method, serving: Serving) -> None:
        """Send messages of a stream, as many as its caller has asked for."""
        try:
            if serving.messages is None:
                serving.messages = cast("Iterator[Parts]", method.serve(serving.body, serving))
            for _ in range(_MESSAGES_A_TURN):
                self._require_time(serving)
                if self._park(serving):
                    return
                message = None if serving.cancelled else next(serving.messages, None)
                if message is None:
                    break
                self._put(serving, message, 0)
            else:
                self._submit(self._streams, self._go_on, method, serving)
                return
            serving.close()
            self._put(serving, (), LAST)
        except Exception as error:
            serving.close()
            self._refuse(serving, error)
        self._finish(serving)

    def _park(self, serving: Serving) -> bool:
        """Take one of the messages that may be sent; if there is none, let the stream wait, and return True."""
        with self._lock:
            if serving.cancelled:
                return False
            if serving.allowed and not self._outgoing.is_blocked:
                serving.allowed -= 1
                return False
            serving.parked_s = self._clock_s()
            return True

    def _resume(self, parked: Sequence[Serving]) -> None:
        """Let streams go on that wait."""
        for serving in parked:
            with self._lock:
                if serving.parked_s is None:
                    continue
                serving.parked_s = None
            self._submit(self._streams, self._go_on, self._methods[serving.header.method], serving)

    def _finish(self, serving: Serving) -> None:
        serving.body.release()
        with self._lock:
            if self._running and len(serving.memory) <= _KEPT_BYTES_MAX:
                self._kept = serving.memory
            self._serving.pop(serving.header.call, None)
            if serving.slow:
                self._slow_places += 1
            last = self._ended and not self._serving and not self._running
        serving.charge.give_back()
        if serving.slow:
            self._begin_slow()
        if last:
            self._server.forget(self)

    # -- sending ---------------------------------------------------------------------------------

    def _refuse(self, serving: Serving, error: Exception) -> None:
        """Send a failure; after one of sending, end the connection."""
        try:
            if isinstance(error, SendFailed):
                raise error
            self.standing.failed(self._clock_s())
            text = self._describe(error)[:FAILURE_BYTES_MAX]
            self._send([pack_header(Kind.FAILURE, serving.header.call, len(text)), text])
        except SendFailed:
            self.end()

    def _put(self, serving: Serving, parts: Parts, flags: int) -> None:
        self._send([pack_header(Kind.ANSWER, serving.header.call, length_of(parts), flags=flags), *parts])

    def _send(self, parts: Parts) -> None:
        self._outgoing.put(parts)
        if self._outgoing.is_blocked:
            with self._lock:
                if not self._running and not self._ended:
                    self._rest()

"""Calls that generate their messages while sending: signals stop them, and errors of the generator are raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

import grpc

from taskworker.client.connection import Connection
from taskworker.client.scope import CallScope, current_scope

MessageT = TypeVar("MessageT")
ResponseT = TypeVar("ResponseT")


def send(
    connection: Connection,
    method: grpc.StreamUnaryMultiCallable[Any, ResponseT],
    messages: OutgoingMessages[Any],
    timeout_s: float | None,
) -> ResponseT:
    """Make a call with many messages and one response, within ``timeout_s`` seconds."""
    connection.home.check()
    scope = current_scope.get() or CallScope()

    def work() -> ResponseT:
        call = method.future(messages, timeout=timeout_s)
        call.add_done_callback(lambda _: messages.ended())
        with scope.holding(call):
            return call.result()

    with connection.errors_decoded():
        sending = _Shielded(work, messages.ended)
        try:
            messages.wait_for_last()
            return sending.result()
        except grpc.RpcError:
            messages.raise_error()
            raise
        except BaseException:
            scope.cancel()
            raise
        finally:
            messages.stop()


class _Latch:
    """Opens once, for one waiting thread. It is a bare lock, which a signal's exception cannot leave half acquired."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Let the waiting thread continue; further calls do nothing."""
        with suppress(RuntimeError):  # it is already open
            self._lock.release()

    def wait(self) -> None:
        """Wait until it is open."""
        self._lock.acquire()
        self.open()


class _Shielded(Generic[ResponseT]):
    """Runs work in a separate thread, where no signal interrupts it.

    An exception raised by a signal handler can interrupt the main thread anywhere; inside gRPC it would leave a
    lock held that gRPC's own threads wait for.
    """

    def __init__(self, work: Callable[[], ResponseT], ended: Callable[[], None]) -> None:
        self._work = work
        self._ended = ended
        self._done = _Latch()
        self._result: list[ResponseT] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="call", daemon=True).start()

    def _run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:  # raised by result()
            self._error = error
        finally:
            self._ended()
            self._done.open()

    def result(self) -> ResponseT:
        """Return the result of the work, or raise its error."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]


class OutgoingMessages(Generic[MessageT]):
    """Messages for gRPC's sending thread; each is handed over once the next one is known, or it is the last.

    The last message, which commits, is held back until the calling thread releases it: a signal that arrives
    before the end of the input must stop the call, although another thread reads the input.

    gRPC only logs an error in the iterator that it sends from. So an error ends the stream, which the server
    refuses because the commit message is missing, and is kept for ``raise_error``.
    """

    def __init__(self, messages: Iterator[MessageT]) -> None:
        self._messages = messages
        self._held: list[MessageT] = []
        self._error: BaseException | None = None
        self._stopped = False
        self._at_last = _Latch()
        self._let_go = _Latch()
        self.last_sent = False

    def __iter__(self) -> Iterator[MessageT]:
        return self

    def __next__(self) -> MessageT:
        if self._stopped or self.last_sent:
            raise StopIteration
        try:
            return self._after_lookahead()
        except StopIteration:
            raise
        except BaseException as error:  # raised where the result is awaited
            self._error = error
            raise StopIteration from None

    def _after_lookahead(self) -> MessageT:
        if not self._held:
            self._held.append(next(self._messages))
        for following in self._messages:
            self._held.append(following)
            return self._held.pop(0)
        self._at_last.open()
        self._let_go.wait()
        if self._stopped:
            raise StopIteration
        self.last_sent = True
        return self._held.pop()

    def wait_for_last(self) -> None:
        """Wait until only the last message is left to send, or the call has ended; then release the last message."""
        self._at_last.wait()
        self._let_go.open()

    def ended(self) -> None:
        """Tell :meth:`wait_for_last` that the call has ended."""
        self._at_last.open()

    def stop(self) -> None:
        """Stop making messages, as the call has ended."""
        self._stopped = True
        self._let_go.open()

    def raise_error(self) -> None:
        """Raise the error of making messages, if there was one."""
        if self._error is not None:
            raise self._error

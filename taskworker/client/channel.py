"""One connection to a server: every call a client makes, its deadline, cancelling, and errors."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from storage.system.forks import HomeProcess
from taskworker.client.scope import CallScope, current_scope
from taskworker.errors import CallAbandoned, DeadlineExceeded, StorageUnavailable
from taskworker.protos import store_pb2
from taskworker.protos.functions_pb2_grpc import StreamServiceStub
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.protos.taskworker_pb2_grpc import DNSServiceStub, FileServiceStub, RPCServiceStub
from taskworker.rpc import status
from taskworker.rpc.data_frames import data_of_frame
from taskworker.rpc.dialling import STORE_SERVICE, dial

ResponseT = TypeVar("ResponseT")

GetMessage = memoryview | store_pb2.GetPart

_BACKOFF_S = 0.2
_CLOSE_S_MAX = 5.0


_ENDLESS_S = 100 * 365 * 86400
"""As good as no limit: gRPC counts nanoseconds since 1970 in 63 bits, and what is beyond them has passed at once."""


class Deadline:
    """A point in time by which a whole operation, all its calls and retries, must be done."""

    __slots__ = ("_at", "_limit_s")

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._at = None if limit_s is None or limit_s >= _ENDLESS_S else time.monotonic() + limit_s

    def remaining_s(self) -> float | None:
        """Seconds left, None without a limit.

        Raises:
            DeadlineExceeded: none are left.
        """
        if self._at is None:
            return None
        left = self._at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"not done within {self._limit_s} s; allow more time, or try again to go on")
        return left

    def back_off(self, attempt: int) -> None:
        """Sleep before try number ``attempt`` (1, 2, …), longer each time, not past the deadline."""
        pause = _BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)
        left = self.remaining_s()
        time.sleep(pause if left is None else min(pause, left))


def _read_get_message(raw: bytes) -> GetMessage:
    data = data_of_frame(raw)
    return data if data is not None else store_pb2.GetPart.FromString(raw)


class Channel:
    """The calls of a server, raising the engine's errors. Thread-safe; connects when first used."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._home = HomeProcess(f"the connection to {address}")
        self._channel = dial(address)
        self.files = FileServiceStub(self._channel)
        self.store = StoreServiceStub(self._channel)
        self.rpc = RPCServiceStub(self._channel)
        self.streams = StreamServiceStub(self._channel)
        self.dns = DNSServiceStub(self._channel)
        self._push: grpc.StreamUnaryMultiCallable[bytes, store_pb2.PushStreamResponse] = self._channel.stream_unary(
            f"/{STORE_SERVICE}/PushStream", response_deserializer=store_pb2.PushStreamResponse.FromString
        )
        self._get = self._channel.unary_stream(
            f"/{STORE_SERVICE}/GetStream",
            request_serializer=store_pb2.GetStreamRequest.SerializeToString,
            response_deserializer=_read_get_message,
        )
        self._described: store_pb2.DescribeResponse | None = None

    def close(self) -> None:
        """End the connection; calls under way are cancelled. Does nothing in a forked child."""
        if not self._home.is_here:
            return
        # gRPC waits for its own threads, for ever if a signal's exception left one of its locks held.
        closing = threading.Thread(target=self._channel.close, name="close-channel", daemon=True)
        closing.start()
        closing.join(_CLOSE_S_MAX)

    def describe(self, deadline: Deadline, scope: CallScope | None = None) -> store_pb2.DescribeResponse:
        """What the server told of itself, asked once."""
        if self._described is None:
            self._described = self.unary(self.store.Describe, store_pb2.DescribeRequest(), deadline, scope)
        return self._described

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, ResponseT],
        request: Message,
        deadline: Deadline,
        scope: CallScope | None = None,
    ) -> ResponseT:
        """One request, one response."""
        self._home.check()
        timeout = deadline.remaining_s()
        scope = scope or current_scope.get()
        with self._errors_decoded():
            if scope is None:
                return method(request, timeout=timeout)
            call = method.future(request, timeout=timeout)
            with scope.holding(call):
                return call.result()

    def push(self, messages: OutgoingMessages[bytes], deadline: Deadline) -> store_pb2.PushStreamResponse:
        """PushStream of messages in wire form."""
        return self._send(self._push, messages, deadline)

    def revise(
        self, messages: OutgoingMessages[store_pb2.RevisePart], deadline: Deadline
    ) -> store_pb2.ReviseStreamResponse:
        """ReviseStream."""
        return self._send(self.store.ReviseStream, messages, deadline)

    def get(self, request: store_pb2.GetStreamRequest, deadline: Deadline) -> IncomingMessages[GetMessage]:
        """GetStream: data as views, anything else as messages."""
        return self.receive(self._get, request, deadline)

    def receive(
        self, method: grpc.UnaryStreamMultiCallable[Any, ResponseT], request: Message, deadline: Deadline
    ) -> IncomingMessages[ResponseT]:
        """One request, many responses; close what is returned when done with it."""
        self._home.check()
        with self._errors_decoded():
            return IncomingMessages(method(request, timeout=deadline.remaining_s()), self.address)

    def _send(
        self,
        method: grpc.StreamUnaryMultiCallable[Any, ResponseT],
        messages: OutgoingMessages[Any],
        deadline: Deadline,
    ) -> ResponseT:
        self._home.check()
        scope = current_scope.get() or CallScope()

        def work() -> ResponseT:
            call = method.future(messages, timeout=deadline.remaining_s())
            call.add_done_callback(lambda _: messages.ended())
            with scope.holding(call):
                return call.result()

        with self._errors_decoded():
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

    @contextmanager
    def _errors_decoded(self) -> Iterator[None]:
        try:
            yield
        except grpc.FutureCancelledError:
            raise CallAbandoned("the call was cancelled") from None
        except grpc.RpcError as error:
            raise status.decode(error, self.address) from None
        except ValueError as error:
            if "closed channel" not in str(error):
                raise
            raise StorageUnavailable("this client is closed; make a new one") from None


MessageT = TypeVar("MessageT")
ResponseT_co = TypeVar("ResponseT_co", covariant=True)


class _Responses(Protocol[ResponseT_co]):
    """A call whose responses are iterated over."""

    def __next__(self) -> ResponseT_co: ...

    def cancel(self) -> object: ...


class _Latch:
    """Opens once, for one waiting thread. A bare lock, which a signal's exception cannot leave half taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Let the waiting thread go on; again does nothing."""
        with suppress(RuntimeError):  # it is open
            self._lock.release()

    def wait(self) -> None:
        """Return once it is open."""
        self._lock.acquire()
        self.open()


class _Shielded(Generic[ResponseT]):
    """Work in a thread of its own, away from signals.

    Python raises what a signal's handler raises wherever the main thread happens to be; within gRPC it
    would leave a lock held that gRPC's own threads then wait for.
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
        """What the work returned; raises what it raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]


class OutgoingMessages(Generic[MessageT]):
    """Messages made on the way, for gRPC's sending thread, each once the next one is known or there is none.

    The last one, which commits, waits until the calling thread lets it go: a signal that came before
    the end of the input must stop the call, though another thread reads the input.

    gRPC reports nothing of an error in the iterator it sends from, but logs it; so one ends the
    stream, which the server refuses for want of a commit message, and is kept for ``raise_error``.
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
        """Return when only the last message is left to send, or the call has ended; then let it go."""
        self._at_last.wait()
        self._let_go.open()

    def ended(self) -> None:
        """Say that the call has ended: there is nothing to wait for."""
        self._at_last.open()

    def stop(self) -> None:
        """Make no more messages: the call has ended."""
        self._stopped = True
        self._let_go.open()

    def raise_error(self) -> None:
        """Raise what went wrong in making messages, if anything did."""
        if self._error is not None:
            raise self._error


class IncomingMessages(Generic[ResponseT]):
    """The responses of one call; an iterator and a context manager that cancels what is left."""

    def __init__(self, call: _Responses[ResponseT], address: str) -> None:
        self._home = HomeProcess(f"the call to {address}")
        self._call = call
        self._address = address
        self._scope = current_scope.get() or CallScope()

    def __iter__(self) -> Iterator[ResponseT]:
        return self

    def __next__(self) -> ResponseT:
        self._home.check()
        try:
            with (current_scope.get() or self._scope).holding(self._call):  # of this step, and not of the first
                return next(self._call)
        except grpc.RpcError as error:
            raise status.decode(error, self._address) from None

    def __enter__(self) -> IncomingMessages[ResponseT]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the call if it has not ended."""
        if self._home.is_here:
            self._call.cancel()


def retried(operation: Callable[[], ResponseT], deadline: Deadline, retries: int) -> ResponseT:
    """``operation()``, tried again while the server is unavailable; only for what may be done twice."""
    attempt = 0
    while True:
        try:
            return operation()
        except StorageUnavailable:
            attempt += 1
            if attempt > retries:
                raise
            deadline.back_off(attempt)

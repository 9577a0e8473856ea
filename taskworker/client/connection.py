"""One connection to a server: its calls have time limits, can be cancelled by other threads, and raise engine errors.

It imports no generated code of a service, so that a program which only asks a pool for its state loads little else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc
from google.protobuf.message import Message

from storage.system.forks import HomeProcess
from taskworker.auth.contexts import Access
from taskworker.client.scope import CallScope, current_scope
from taskworker.errors import CallAbandoned, StorageUnavailable
from taskworker.rpc import status
from taskworker.rpc.dialling import dial
from taskworker.rpc.tls_problems import refined
from taskworker.rpc.token_channel import TokenChannel

ResponseT = TypeVar("ResponseT")
ResponseT_co = TypeVar("ResponseT_co", covariant=True)

_CLOSE_S_MAX = 5.0
_CLOSED = ("closed channel", "Channel closed")  # in texts of gRPC's ValueError: its checks differ


class Connection:
    """Makes calls to a server, raising the engine's errors. Thread-safe; connects on first use; a context manager.

    Args:
        address: ``host:port``, ``[ipv6]:port`` or ``unix:path``, or several addresses separated by commas.
        access: what to show, and to whom; None: as this user's context for the address says.
        channel: a channel to use in place of one of its own; it stays open.

    Raises:
        InvalidArgument: the address is malformed.
    """

    def __init__(self, address: str, *, access: Access | None = None, channel: grpc.Channel | None = None) -> None:
        self.address = address
        self.home = HomeProcess(f"the connection to {address}")
        self._is_own = channel is None
        self.channel = dial(address, access=access) if channel is None else channel

    @property
    def access(self) -> Access | None:
        """What calls show now, and to whom; None: the channel is somebody else's, who knows."""
        if not self._is_own:
            return None
        return Access(*self.channel.access()) if isinstance(self.channel, TokenChannel) else Access()

    def close(self) -> None:
        """Close the connection, and cancel running calls. Does nothing in a forked child."""
        if not self.home.is_here or not self._is_own:
            return
        # gRPC waits for its threads here. If a signal's exception left one of its locks held, it waits for ever.
        closing = threading.Thread(target=self.channel.close, name="close-channel", daemon=True)
        closing.start()
        closing.join(_CLOSE_S_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, ResponseT],
        request: Message,
        timeout_s: float | None,
        scope: CallScope | None = None,
    ) -> ResponseT:
        """Make a call with one request and one response, within ``timeout_s`` seconds."""
        self.home.check()
        scope = scope or current_scope.get()
        try:
            if scope is None:
                return method(request, timeout=timeout_s)
            call = method.future(request, timeout=timeout_s)
            with scope.holding(call):
                return call.result()
        except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as error:
            raise self._decoded(error) from None

    def receive(
        self, method: grpc.UnaryStreamMultiCallable[Any, ResponseT], request: Message, timeout_s: float | None
    ) -> IncomingMessages[ResponseT]:
        """Make a call with one request and many responses; close the returned iterator when done with it."""
        self.home.check()
        with self.errors_decoded():
            return IncomingMessages(method(request, timeout=timeout_s), self)

    def exchange(
        self,
        method: grpc.StreamStreamMultiCallable[Any, ResponseT],
        requests: Iterator[Any],
        timeout_s: float | None,
    ) -> IncomingMessages[ResponseT]:
        """Make a call with many requests and many responses, like :meth:`receive`. Another thread iterates requests."""
        self.home.check()
        with self.errors_decoded():
            return IncomingMessages(method(requests, timeout=timeout_s), self)

    @contextmanager
    def errors_decoded(self) -> Iterator[None]:
        """Within this context, raise the engine's errors instead of gRPC's."""
        try:
            yield
        except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as error:
            raise self._decoded(error) from None

    def _decoded(self, error: Exception) -> Exception:
        """The error to raise for one of gRPC's."""
        if isinstance(error, grpc.RpcError):
            is_encrypted = isinstance(self.channel, TokenChannel) and self.channel.is_encrypted
            return refined(status.decode(error, self.address), self.address, is_encrypted=is_encrypted)
        if isinstance(error, grpc.FutureCancelledError):
            return CallAbandoned("the call was cancelled")
        if any(text in str(error) for text in _CLOSED):
            return StorageUnavailable("this client is closed; make a new one")
        return error


class _Responses(Protocol[ResponseT_co]):
    """A call whose responses can be iterated over."""

    def __next__(self) -> ResponseT_co: ...

    def cancel(self) -> object: ...


class IncomingMessages(Generic[ResponseT]):
    """The responses of one call; an iterator, and a context manager that cancels the rest of the call."""

    def __init__(self, call: _Responses[ResponseT], connection: Connection) -> None:
        self._call = call
        self._connection = connection
        self._scope = current_scope.get() or CallScope()

    def __iter__(self) -> Iterator[ResponseT]:
        return self

    def __next__(self) -> ResponseT:
        self._connection.home.check()
        scope = current_scope.get() or self._scope  # the scope of this step, which may differ from that of the first
        with self._connection.errors_decoded(), scope.holding(self._call):
            return next(self._call)

    def __enter__(self) -> IncomingMessages[ResponseT]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the call if it has not ended."""
        if self._connection.home.is_here:
            self._call.cancel()

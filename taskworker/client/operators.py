"""What the operators' clients of a pool have in common: a connection, and errors of the engine's family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

from storage.system.forks import HomeProcess
from taskworker.client.scope import CallScope, current_scope
from taskworker.rpc import status
from taskworker.rpc.dialling import dial

ResponseT = TypeVar("ResponseT")
ResponseT_co = TypeVar("ResponseT_co", covariant=True)


class Responses(Protocol[ResponseT_co]):
    """A call under way whose responses are iterated over."""

    def __iter__(self) -> Iterator[ResponseT_co]: ...

    def cancel(self) -> object:
        """End the call."""


class OperatorClient:
    """A connection to a pool; a context manager. What derives from it makes its stub on ``_channel``.

    Args:
        address: of the pool.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._home = HomeProcess(f"the connection to {address}")
        self._channel = dial(address)

    def close(self) -> None:
        """End the connection. Does nothing in a forked child."""
        if self._home.is_here:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, call: Callable[[], ResponseT]) -> ResponseT:
        self._home.check()
        with status.errors_decoded(self._address):
            return call()

    def _stream(self, call: Callable[[], Responses[ResponseT]]) -> Iterator[ResponseT]:
        """The responses as they come; the call is cancelled when nobody wants more of them."""
        self._home.check()
        stream = call()
        try:
            with status.errors_decoded(self._address):
                responses = iter(stream)
                while (response := _next_of(responses, stream)) is not None:
                    yield response
                    self._home.check()
        finally:
            if self._home.is_here:
                stream.cancel()


def _next_of(responses: Iterator[ResponseT], stream: Responses[ResponseT]) -> ResponseT | None:
    """The next response, None at the end; waiting for it can be cancelled, as any call of its scope."""
    with (current_scope.get() or CallScope()).holding(stream):
        return next(responses, None)

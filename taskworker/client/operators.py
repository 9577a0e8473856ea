"""What the operators' clients of a pool have in common."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import grpc
from google.protobuf.message import Message

from taskworker.client.connection import Connection

ResponseT = TypeVar("ResponseT")


class OperatorClient:
    """A connection to a pool; a context manager. What derives from it makes its stub on the connection's channel.

    Args:
        address: of the pool.

    Attributes:
        timeout_s: of a call, in seconds.
    """

    timeout_s: ClassVar[float] = 60.0

    def __init__(self, address: str) -> None:
        self._connection = Connection(address)
        self._address = address

    def close(self) -> None:
        """End the connection. Does nothing in a forked child."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: grpc.UnaryUnaryMultiCallable[Any, ResponseT], request: Message) -> ResponseT:
        return self._connection.unary(method, request, self.timeout_s)

    def _stream(self, method: grpc.UnaryStreamMultiCallable[Any, ResponseT], request: Message) -> Iterator[ResponseT]:
        """The responses as they come; the call is cancelled when nobody wants more of them."""
        with self._connection.receive(method, request, None) as responses:
            yield from responses

"""What the operators' clients of a pool have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

import grpc
from google.protobuf.message import Message

from taskworker.client.connection import Connection

ResponseT = TypeVar("ResponseT")


class OperatorClient(Connection):
    """A connection to a pool; a context manager. What derives from it makes its stub on :attr:`channel`.

    Args:
        address: of the pool.

    Attributes:
        timeout_s: of a call, in seconds.
    """

    timeout_s: ClassVar[float] = 60.0

    def _call(self, method: grpc.UnaryUnaryMultiCallable[Any, ResponseT], request: Message) -> ResponseT:
        return self.unary(method, request, self.timeout_s)

    def _stream(self, method: grpc.UnaryStreamMultiCallable[Any, ResponseT], request: Message) -> Iterator[ResponseT]:
        """The responses as they come; the call is cancelled when nobody wants more of them."""
        with self.receive(method, request, None) as responses:
            yield from responses

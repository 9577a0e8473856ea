"""The base of the operators' clients of a pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

import grpc
from google.protobuf.message import Message

from taskworker.client.connection import Connection

ResponseT = TypeVar("ResponseT")


class OperatorClient(Connection):
    """A connection to a pool; a context manager. Subclasses make their stubs on :attr:`channel`.

    Args:
        address: address of the pool.

    Attributes:
        timeout_s: seconds that each call may take.
    """

    timeout_s: ClassVar[float] = 60.0

    def _call(self, method: grpc.UnaryUnaryMultiCallable[Any, ResponseT], request: Message) -> ResponseT:
        return self.unary(method, request, self.timeout_s)

    def _stream(self, method: grpc.UnaryStreamMultiCallable[Any, ResponseT], request: Message) -> Iterator[ResponseT]:
        """Yield the responses as they arrive; closing this generator cancels the call."""
        with self.receive(method, request, None) as responses:
            yield from responses

"""The gRPC calls of a file server."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from taskworker.auth.contexts import Access
from taskworker.client.connection import Connection, IncomingMessages
from taskworker.client.deadline import Deadline
from taskworker.client.scope import CallScope
from taskworker.client.sending import OutgoingMessages, send
from taskworker.protos import store_pb2
from taskworker.protos.functions_pb2_grpc import StreamServiceStub
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.protos.taskworker_pb2_grpc import DNSServiceStub, FileServiceStub, RPCServiceStub
from taskworker.rpc.data_frames import data_of_frame
from taskworker.rpc.dialling import STORE_SERVICE

ResponseT = TypeVar("ResponseT")

GetMessage = memoryview | store_pb2.GetPart
GetManyMessage = memoryview | store_pb2.GetManyPart


def _read_get_message(raw: bytes) -> GetMessage:
    data = data_of_frame(raw)
    return data if data is not None else store_pb2.GetPart.FromString(raw)


def _read_many_message(raw: bytes) -> GetManyMessage:
    data = data_of_frame(raw)
    return data if data is not None else store_pb2.GetManyPart.FromString(raw)


class Channel:
    """A connection to a file server, and its stubs; each call must end by the deadline of its operation.

    Attributes:
        channel: gRPC's channel, for further stubs.
        has_small_calls: whether to use the calls for small files, which older servers do not offer.
    """

    def __init__(
        self,
        address: str,
        channel: grpc.Channel | None = None,
        access: Access | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock_s = clock_s
        self._connection = Connection(address, channel=channel, access=access)
        self.channel = channel = self._connection.channel
        self.address = address
        self.has_small_calls = True
        self.files = FileServiceStub(channel)
        self.store = StoreServiceStub(channel)
        self.rpc = RPCServiceStub(channel)
        self.streams = StreamServiceStub(channel)
        self.dns = DNSServiceStub(channel)
        self._push: grpc.StreamUnaryMultiCallable[bytes, store_pb2.PushStreamResponse] = channel.stream_unary(
            f"/{STORE_SERVICE}/PushStream", response_deserializer=store_pb2.PushStreamResponse.FromString
        )
        self._get = channel.unary_stream(
            f"/{STORE_SERVICE}/GetStream",
            request_serializer=store_pb2.GetStreamRequest.SerializeToString,
            response_deserializer=_read_get_message,
        )
        self._push_many: grpc.StreamStreamMultiCallable[bytes, store_pb2.PushManyResults] = channel.stream_stream(
            f"/{STORE_SERVICE}/PushMany", response_deserializer=store_pb2.PushManyResults.FromString
        )
        self._get_many = channel.unary_stream(
            f"/{STORE_SERVICE}/GetMany",
            request_serializer=store_pb2.GetManyRequest.SerializeToString,
            response_deserializer=_read_many_message,
        )
        self._described: store_pb2.DescribeResponse | None = None
        self._described_s = 0.0

    @property
    def access(self) -> Access | None:
        """What calls show now, and to whom; None: the channel is somebody else's, who knows."""
        return self._connection.access

    def check_here(self) -> None:
        """Check that this is the process that made the connection.

        Raises:
            UsedAfterFork: it is a forked child.
        """
        self._connection.home.check()

    def close(self) -> None:
        """Close the connection, and cancel running calls. Does nothing in a forked child."""
        self._connection.close()

    def describe(
        self, deadline: Deadline, scope: CallScope | None = None, *, age_s_max: float = math.inf
    ) -> store_pb2.DescribeResponse:
        """The server's description of itself, fetched once, and again when it is older than so many seconds."""
        found = self._described
        if found is None or self._clock_s() - self._described_s > age_s_max:
            found = self._described = self.unary(self.store.Describe, store_pb2.DescribeRequest(), deadline, scope)
            self._described_s = self._clock_s()
        return found

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, ResponseT],
        request: Message,
        deadline: Deadline,
        scope: CallScope | None = None,
    ) -> ResponseT:
        """Make a call with one request and one response."""
        return self._connection.unary(method, request, deadline.remaining_s(), scope)

    def push(self, messages: OutgoingMessages[bytes], deadline: Deadline) -> store_pb2.PushStreamResponse:
        """Call PushStream with messages in wire form."""
        return send(self._connection, self._push, messages, deadline.remaining_s())

    def revise(
        self, messages: OutgoingMessages[store_pb2.RevisePart], deadline: Deadline
    ) -> store_pb2.ReviseStreamResponse:
        """Call ReviseStream."""
        return send(self._connection, self.store.ReviseStream, messages, deadline.remaining_s())

    def get(self, request: store_pb2.GetStreamRequest, deadline: Deadline) -> IncomingMessages[GetMessage]:
        """Call GetStream; yields data as views, anything else as messages."""
        return self.receive(self._get, request, deadline)

    def push_many(self, messages: Iterator[bytes], deadline: Deadline) -> IncomingMessages[store_pb2.PushManyResults]:
        """Call PushMany with messages in wire form, which must not raise."""
        return self._connection.exchange(self._push_many, messages, deadline.remaining_s())

    def get_many(self, request: store_pb2.GetManyRequest, deadline: Deadline) -> IncomingMessages[GetManyMessage]:
        """Call GetMany; yields data as views, anything else as messages."""
        return self.receive(self._get_many, request, deadline)

    def receive(
        self, method: grpc.UnaryStreamMultiCallable[Any, ResponseT], request: Message, deadline: Deadline
    ) -> IncomingMessages[ResponseT]:
        """Make a call with one request and many responses; close the returned iterator when done with it."""
        return self._connection.receive(method, request, deadline.remaining_s())

"""The base of all calls of a client."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import grpc

from storage import (
    Version,
)
from storage.arguments import seconds, text
from taskworker.auth.contexts import AccessTo
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.client.fetching import Fetch, Wanted
from taskworker.protos import store_pb2
from taskworker.rpc import conversion as convert

RETRIES = 3


class ClientBase:
    """A connection to a server, with what all calls on it share.

    Args:
        address: ``host:port``, ``[ipv6]:port`` or ``unix:/path``.
        timeout_s: seconds for calls that are given no timeout of their own; None: no limit.
        channel: a channel to the server to use in place of one of its own; it stays open.
        token: the token to show, or a link to a file; None: that of this user's context for the address.

    Raises:
        InvalidArgument: the address is malformed.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | None = None,
        channel: grpc.Channel | None = None,
        token: str | None = None,
    ) -> None:
        if timeout_s is not None:
            seconds("timeout_s")(timeout_s)
        self.address = address
        self._timeout_s = timeout_s
        access = None if token is None else AccessTo(address)()._replace(token=text("token")(token))
        self._channel = Channel(address, channel, access)

    def close(self) -> None:
        """Close the connection. Running calls in other threads fail."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(timeout_s if timeout_s is not None else self._timeout_s)

    def _fetch(self, wanted: Wanted, timeout_s: float | None) -> Fetch:
        return Fetch(self._channel, wanted, deadline=self._deadline(timeout_s), retries=RETRIES)

    def _stat(self, file_id: str, user_id: str, version_id: str | None, deadline: Deadline) -> Version:
        request = store_pb2.StatRequest(user_id=user_id, file_id=file_id, version_id=version_id or "")
        return convert.version_from_proto(self._channel.unary(self._channel.store.Stat, request, deadline))

"""Small files for programs that run in an event loop: each is got or stored by one call, and no thread waits for it.

A call by a thread wakes up eight threads in all, one by the event loop five. With 16 callers, the latter takes half of
the processor time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from storage import Version
from storage.errors import FileNotFound
from storage.options import PushOptions
from taskworker.auth.contexts import Access
from taskworker.auth.trust import Trust
from taskworker.client.checked import arguments_checked
from taskworker.client.client import Client
from taskworker.client.sealed.names import require_readable
from taskworker.errors import StorageUnavailable
from taskworker.protos import store_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.rpc import status
from taskworker.rpc.conversion import push_commit, push_header, version_from_proto
from taskworker.rpc.dialling import dial_for_loop
from taskworker.rpc.tls_problems import refined
from taskworker.rpc.token_channel import METADATA_KEY
from taskworker.tracing.spans import is_traced

if TYPE_CHECKING:
    from taskworker.protos.store_pb2_grpc import StoreServiceAsyncStub

ResponseT = TypeVar("ResponseT")

_CHANNELS_MAX = 8
"""A server has another one only when its authorities were replaced."""


class SmallFiles:
    """Gets and stores small files on behalf of clients, all over one connection to each server. For one event loop."""

    def __init__(self) -> None:
        self._channels: dict[tuple[str, Trust | None], tuple[grpc.aio.Channel, StoreServiceAsyncStub]] = {}

    def close(self) -> None:
        """Close the connections, in the event loop or after its end. Running calls fail."""
        self._channels.clear()  # gRPC closes a channel that nobody refers to

    def serves(self, client: Client) -> bool:
        """Whether calls can be made on behalf of a client: it has neither a channel of its own nor a key of its user's.

        Calls whose spans are told are made by the client itself.
        """
        return client.access is not None and not is_traced()

    async def get(self, client: Client, filename: str, *, user_id: str, bytes_max: int) -> tuple[Version, bytes | None]:
        """The head of the file with this name and, if it has at most ``bytes_max`` bytes, its content.

        Args:
            client: on whose behalf.
            filename: the file's name.
            user_id: its owner.
            bytes_max: larger content is not read; nor is content of more than 1 MiB.

        Raises:
            StorageUnavailable: no server answers, or it is busy. The call may be repeated.
            StorageError: as :meth:`Client.get_small`.
        """
        request = _get_request(client, filename, user_id=user_id, bytes_max=bytes_max)
        access = _access_of(client)
        part = await self._answer(client, access, self._stub(client, access).GetFile, request)
        require_readable(part.version)
        version = version_from_proto(part.version)
        if not version.file_id:
            raise FileNotFound("there is no such file")
        return version, part.data if len(part.data) == version.size else None

    async def push(
        self,
        client: Client,
        content: bytes,
        *,
        user_id: str,
        filename: str,
        time_ms: int,
        attributes: Mapping[str, bytes],
    ) -> Version:
        """Store content of up to 64 KiB under a user's filename.

        Args:
            client: on whose behalf.
            content: the content.
            user_id: the owner.
            filename: the name to store it under.
            time_ms: the author's time, in milliseconds since 1970.
            attributes: kept with the version.

        Raises:
            ServerBusy: the server refused the call, and did nothing.
            StorageError: as :meth:`Client.push`.
        """
        part = _push_part(client, content, user_id=user_id, filename=filename, time_ms=time_ms, attributes=attributes)
        access = _access_of(client)
        response = await self._answer(client, access, self._stub(client, access).PushFile, part)
        return version_from_proto(response.version, unchanged=response.unchanged)

    def _stub(self, client: Client, access: Access) -> StoreServiceAsyncStub:
        which = (client.address, access.trust)
        kept = self._channels.get(which)
        if kept is None:
            channel = dial_for_loop(client.address, access.trust)
            stub: Any = StoreServiceStub(channel)
            kept = self._channels[which] = channel, stub
            if len(self._channels) > _CHANNELS_MAX:
                del self._channels[next(iter(self._channels))]
        return kept[1]

    async def _answer(
        self,
        client: Client,
        access: Access,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, ResponseT],
        request: Any,
    ) -> ResponseT:
        shown = ((METADATA_KEY, f"Bearer {access.token}"),) if access.token else None
        try:
            return await method(request, metadata=shown)
        except grpc.aio.AioRpcError as error:
            failure = status.decode(error, client.address)
            if not isinstance(failure, StorageUnavailable):
                raise failure from None
            is_encrypted = access.trust is not None
            raise await asyncio.to_thread(refined, failure, client.address, is_encrypted=is_encrypted) from None


def _access_of(client: Client) -> Access:
    access = client.access
    assert access is not None, "serves() said so"
    return access


@arguments_checked
def _get_request(_client: Client, file: str, *, user_id: str, bytes_max: int) -> store_pb2.GetFileRequest:
    return store_pb2.GetFileRequest(user_id=user_id, filename=file, bytes_max=bytes_max)


@arguments_checked
def _push_part(
    _client: Client, source: bytes, *, user_id: str, filename: str, time_ms: int, attributes: Mapping[str, bytes]
) -> store_pb2.PushPart:
    options = PushOptions(filename=filename, user_id=user_id, time_ms=time_ms, attributes=attributes)
    header, commit = push_header(options, size_hint=len(source)), push_commit(options, len(source))
    return store_pb2.PushPart(header=header, data=source, commit=commit)

"""Copies a version by the ids of its chunks, so that none of its bytes travel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from storage import Version
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import attributes_to_proto, profile_to_proto


def chunk_ids_of(channel: Channel, version: Version, deadline: Deadline) -> Iterator[list[bytes]]:
    """The ids of a version's chunks, page by page."""
    start = 0
    while start < version.chunk_count:
        request = store_pb2.GetManifestRequest(
            file_id=version.file_id, user_id=version.user_id, version_id=version.version_id, start=start
        )
        ids = list(channel.unary(channel.store.GetManifest, request, deadline).chunk_ids)
        yield ids
        start += len(ids)


def copy_messages(
    version: Version, filename: str, attributes: Mapping[str, bytes] | None, pages: list[list[bytes]]
) -> Iterator[bytes]:
    """The messages of a push of the same chunks, in wire form."""
    header = store_pb2.PushHeader(
        filename=filename,
        user_id=version.user_id,
        chunk_size=version.chunk_size,
        profile=profile_to_proto(version.profile),
        size_hint=version.size,
    )
    yield store_pb2.PushPart(header=header).SerializeToString()
    for ids in pages:
        yield store_pb2.PushPart(reuse=store_pb2.ChunkList(chunk_ids=ids)).SerializeToString()
    kept = None if attributes is None else attributes_to_proto(attributes)
    yield store_pb2.PushPart(commit=store_pb2.PushCommit(size=version.size, attributes=kept)).SerializeToString()

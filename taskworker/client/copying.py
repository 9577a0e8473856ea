"""Copies a version by the ids of its chunks, so that none of its bytes travel."""

from __future__ import annotations

from collections.abc import Iterator

from storage import Version
from storage.options import PushOptions
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import push_commit, push_header


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


def copy_messages(version: Version, options: PushOptions, pages: list[list[bytes]]) -> Iterator[bytes]:
    """The messages of a push of the same chunks, in wire form."""
    yield store_pb2.PushPart(header=push_header(options, size_hint=version.size)).SerializeToString()
    for ids in pages:
        yield store_pb2.PushPart(reuse=store_pb2.ChunkList(chunk_ids=ids)).SerializeToString()
    yield store_pb2.PushPart(commit=push_commit(options, version.size)).SerializeToString()

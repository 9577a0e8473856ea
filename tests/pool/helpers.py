"""What the pool's tests share: shards made from seeds, and volumes served over gRPC."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from storage.keys import Kind, ShardKey, shard_key, stripe_key
from storage.shards import LocalVolume, Shard
from storage.shards.filesystem import FileSystem
from storage.shards.identity import VolumeIdentity
from taskworker.rpc.serving import Server
from taskworker.services.shards import STREAMS, UNARY, shard_handler
from taskworker.transport.frames import SHARD_SERVICE
from tests.storage.helpers import content, digest

IDENTITY = VolumeIdentity(store_id="0" * 32, slot=0, volumes=1, key="1" * 64)


def key_of(seed: int, slot: int = 0, kind: Kind = Kind.CHUNK) -> ShardKey:
    """A shard of a 4-of-6 stripe."""
    return shard_key(stripe_key(kind, digest(b"object %d" % seed), 4, 6), slot)


def shard_of(seed: int, size: int = 100, slot: int = 0, kind: Kind = Kind.CHUNK) -> Shard:
    """The same shard for the same arguments."""
    payload = content(seed, size)
    return Shard(key_of(seed, slot, kind), 4 * size, digest(payload), payload)


def open_volume(path: Path, filesystem: FileSystem | None = None) -> LocalVolume:
    """A volume in a directory, made if absent, with small segments."""
    path.mkdir(exist_ok=True)
    return LocalVolume(path, IDENTITY, filesystem=filesystem, segment_bytes_max=1 << 20)


@contextmanager
def served(volume: LocalVolume, instance: str = "", port: int = 0) -> Iterator[str]:
    """The address of a server that offers a volume as a worker does."""
    server = Server({SHARD_SERVICE: shard_handler(volume, instance)})
    port = server.start(f"127.0.0.1:{port}")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0.0)


Answer = Callable[[str, bytes, grpc.ServicerContext], bytes]
"""What a made-up server says: (method, request, context) → message."""


@contextmanager
def made_up_server(answer: Answer) -> Iterator[tuple[str, grpc.Server]]:
    """A server that answers calls of the shard service with whatever it likes, and its address."""

    def once(name: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer(name, request, context))

    def stream(name: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        def behave(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            yield answer(name, request, context)

        return grpc.unary_stream_rpc_method_handler(behave)

    handlers = {name: once(name) for name in UNARY} | {name: stream(name) for name in STREAMS}
    with ThreadPoolExecutor(16) as threads:
        server = grpc.server(
            threads,
            handlers=[grpc.method_handlers_generic_handler(SHARD_SERVICE, handlers)],
            options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)],
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", server
        finally:
            server.stop(None).wait()


def noise(seed: int, size: int) -> bytes:
    """Bytes that mean nothing."""
    return random.Random(seed).randbytes(size)

"""What the pool's tests share: shards made from seeds, and volumes served over gRPC."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.keys import Kind, ShardKey, shard_key, stripe_key
from storage.shards import LocalVolume, Shard
from storage.shards.filesystem import FileSystem
from storage.shards.identity import VolumeIdentity
from taskworker.transport.frames import Call
from taskworker.transport.shard_service import shard_server
from taskworker.transport.shards_of_clients import ShardsOfClients
from taskworker.transport.wire.outgoing import Parts
from taskworker.transport.wire.server import WireServer
from taskworker.transport.wire.serving import Caller, Method, Style
from taskworker.transport.wire.streams import Secure, SocketStream
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
def served(
    volume: LocalVolume,
    instance: str = "",
    port: int = 0,
    path: Path | None = None,
    secure: Secure = SocketStream,
    from_clients: ShardsOfClients | None = None,
) -> Iterator[str]:
    """The address of a server that offers a volume as a worker does: a socket file, or a port."""
    server = shard_server(volume, instance, secure=secure, from_clients=from_clients)
    address = server.start(f"127.0.0.1:{port}" if path is None else f"unix:{path}")
    try:
        yield address
    finally:
        server.stop(0.0)


Answer = Callable[[str, bytes, Caller], bytes]
"""What a made-up server says: (method, request, caller) → message. It may raise :class:`Refusal`."""


class Refusal(Exception):
    """A failure as a server describes it."""

    def __init__(self, description: bytes) -> None:
        super().__init__()
        self.description = description


STREAMED = (Call.KEYS, Call.RECORDS, Call.VERIFY, Call.REST, Call.MAKE)


@contextmanager
def made_up_server(answer: Answer, times: int = 1) -> Iterator[tuple[str, WireServer]]:
    """A server that answers calls of the shard service with whatever it likes, and its address.

    Args:
        answer: what it says.
        times: how many messages its streams have.
    """

    def once(name: str) -> Method:
        return Method(name, Style.SLOW, lambda request, caller: (answer(name, bytes(request), caller),))

    def stream(name: str) -> Method:
        def behave(request: memoryview, caller: Caller) -> Iterator[Parts]:
            for _ in range(times):
                yield (answer(name, bytes(request), caller),)

        return Method(name, Style.STREAM, behave)

    names = {call: call.name.title() for call in Call}
    methods: dict[int, Method] = {
        call: stream(name) if call in STREAMED else once(name) for call, name in names.items()
    }
    server = WireServer(methods, described)
    address = server.start("127.0.0.1:0")
    try:
        yield address, server
    finally:
        server.stop(0.0)


def described(error: Exception) -> bytes:
    """How a made-up server describes a failure."""
    return error.description if isinstance(error, Refusal) else repr(error).encode()


def noise(seed: int, size: int) -> bytes:
    """Bytes that mean nothing."""
    return random.Random(seed).randbytes(size)

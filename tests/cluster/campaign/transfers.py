"""Whole files moved by a user process, in bounded memory and with times taken."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import BinaryIO, cast

from blake3 import blake3

from storage.limits import MIB, BytesLike
from taskworker import Client
from tests.cluster.campaign.memory import Memory, own_peak


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a push or get took: seconds, and the most memory of this process until now, in bytes."""

    seconds: float
    digest: str
    memory: Memory


def content_of(name: str, size: int) -> Iterator[bytes]:
    """Bytes that only this name has, a MiB at a time."""
    stream = blake3(name.encode())
    for at in range(0, size, MIB):
        yield stream.digest(min(MIB, size - at), seek=at)


def push(client: Client, user_id: str, name: str, size: int, chunk_size: int | None) -> Transfer:
    """Push :func:`content_of` a name."""
    digest = blake3()

    def pieces() -> Iterator[bytes]:
        for piece in content_of(name, size):
            digest.update(piece)
            yield piece

    began_s = time.perf_counter()
    client.push(pieces(), filename=name, user_id=user_id, chunk_size=chunk_size)
    return Transfer(time.perf_counter() - began_s, digest.hexdigest(), own_peak())


class _Digest(io.RawIOBase):
    """Takes what is written into a hash."""

    def __init__(self) -> None:
        super().__init__()
        self.state = blake3()

    def writable(self) -> bool:
        return True

    def write(self, data: BytesLike) -> int:  # type: ignore[override]  # typeshed's is any buffer
        self.state.update(data)
        return len(data)


def get(client: Client, user_id: str, name: str) -> Transfer:
    """Read a file to its end."""
    head = client.find(name, user_id=user_id)
    assert head is not None
    target = _Digest()
    began_s = time.perf_counter()
    client.download(head.file_id, cast(BinaryIO, target), user_id=user_id)
    return Transfer(time.perf_counter() - began_s, target.state.hexdigest(), own_peak())


def time_gets(client: Client, user_id: str, names: list[str], seconds: float) -> list[float]:
    """Get files of these names, chosen at random, for a while; how long each get took.

    Raises:
        AssertionError: the bytes are not those pushed.
    """
    heads = {name: client.find(name, user_id=user_id) for name in names}
    right = {name: b"".join(content_of(name, head.size)) for name, head in heads.items() if head is not None}
    rng = Random(1)
    taken: list[float] = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        name = rng.choice(names)
        head = heads[name]
        assert head is not None
        began_s = time.perf_counter()
        found = client.get(head.file_id, user_id=user_id)
        taken.append(time.perf_counter() - began_s)
        assert found == right[name], f"{name} reads back wrong"
    return taken

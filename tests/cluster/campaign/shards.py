"""What workers really have, asked of them directly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from storage.keys import ShardKey
from storage.shards import Location
from taskworker.transport.remote_volume import RemoteVolume


@contextmanager
def volume_at(address: str) -> Iterator[RemoteVolume]:
    """A connection to the volume at a shard address, beside the pool's."""
    volume = RemoteVolume(address, "looked at", timeout_s=30.0)
    try:
        yield volume
    finally:
        volume.abandon("looked at")


def keys_at(address: str) -> list[ShardKey]:
    """The keys of all shards a worker has."""
    with volume_at(address) as volume:
        return list(volume.keys())


def places_at(address: str) -> dict[ShardKey, Location]:
    """Where a worker has each of its shards: one made again would be somewhere else."""
    with volume_at(address) as volume:
        keys = list(volume.keys())
        found = zip(keys, volume.locate_all(keys), strict=True)
        return {key: place for key, place in found if place is not None}

"""Shard stores: the port, and the append-only volume on a local disk.

Names are loaded at their first use, so that users of the port alone do not load the volume.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazily import loading

if TYPE_CHECKING:
    from storage.shards.port import (
        CorruptShard,
        Location,
        Shard,
        ShardStore,
        VolumeFailed,
        VolumeReadOnly,
        VolumeUnavailable,
        VolumeUsage,
    )
    from storage.shards.volume import LocalVolume

__all__ = [
    "CorruptShard",
    "LocalVolume",
    "Location",
    "Shard",
    "ShardStore",
    "VolumeFailed",
    "VolumeReadOnly",
    "VolumeUnavailable",
    "VolumeUsage",
]

__getattr__, __dir__ = loading(
    __name__,
    {
        "CorruptShard": "storage.shards.port",
        "LocalVolume": "storage.shards.volume",
        "Location": "storage.shards.port",
        "Shard": "storage.shards.port",
        "ShardStore": "storage.shards.port",
        "VolumeFailed": "storage.shards.port",
        "VolumeReadOnly": "storage.shards.port",
        "VolumeUnavailable": "storage.shards.port",
        "VolumeUsage": "storage.shards.port",
    },
)

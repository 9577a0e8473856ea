"""Shard stores: the port, and the append-only volume on a local disk."""

from storage.shards.port import CorruptShard, Location, Shard, ShardStore, VolumeFailed, VolumeUsage
from storage.shards.volume import LocalVolume

__all__ = ["CorruptShard", "LocalVolume", "Location", "Shard", "ShardStore", "VolumeFailed", "VolumeUsage"]

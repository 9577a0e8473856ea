"""Shards on the wire: frames, a worker's volume as a shard store, and the fleet of workers behind the engine."""

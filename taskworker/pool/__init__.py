"""The node pool: membership, layout, the fleet of workers behind the engine, and its background work."""

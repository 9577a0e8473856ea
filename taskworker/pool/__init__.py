"""The node pool: membership, layout, the workers behind the engine, and background work."""

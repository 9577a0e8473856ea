"""The version of what pool and workers say to each other."""

PROTOCOL = 2
"""Of the pool service and the shard transport; both ends must have the same."""

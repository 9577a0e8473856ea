"""The version of the protocol between pool and workers."""

PROTOCOL = 3
"""Covers the pool service and the shard transport; both ends must have the same version."""

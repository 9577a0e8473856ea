"""The version of the protocol between pool and workers."""

PROTOCOL = 3
"""Covers the pool service and the shard transport; both ends must have the same version."""


def upgrade_advice(worker: int, pool: int) -> str:
    """What to do if the protocols of a worker and a pool differ."""
    if worker < pool:
        return (
            "install the pool's release of taskworker on the worker's machine, and start it again: it keeps its shards"
        )
    return "install the worker's release of taskworker on the pool's machine first, and start the pool again"

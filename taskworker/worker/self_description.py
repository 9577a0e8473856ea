"""What a worker tells its pool about itself."""

from __future__ import annotations

import functools

from blake3 import blake3

from storage.shards.identity import VolumeIdentity


def volume_id(identity: VolumeIdentity) -> str:
    """An id of the volume that does not reveal its key."""
    return blake3(b"volume" + bytes.fromhex(identity.key)).hexdigest(16)


@functools.cache  # opens a file
def own_version() -> str:
    """The version of this software."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("taskworker")
    except PackageNotFoundError:
        return "unknown"

"""A worker's volume over the network, where it differs from one at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.shards import LocalVolume, VolumeFailed
from storage.shards.identity import VolumeIdentity, new_volume_key
from taskworker.rpc.serving import Server
from taskworker.services.shards import shard_handler
from taskworker.transport.frames import SHARD_SERVICE
from taskworker.transport.remote_volume import RemoteVolume


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[RemoteVolume]:
    (tmp_path / "volume").mkdir()
    local = LocalVolume(tmp_path / "volume", VolumeIdentity("ab" * 16, 0, 1, new_volume_key(), 4, 6, 65536))
    server = Server({SHARD_SERVICE: shard_handler(local)})
    server.start(f"unix:{tmp_path}/s")
    volume = RemoteVolume(f"unix:{tmp_path}/s", "w")
    yield volume
    volume.close()
    server.stop(0.0)
    local.close()


def test_a_worker_that_forgot_a_verification_is_as_good_as_away(remote: RemoteVolume) -> None:
    first, *_ = [remote.verify(lambda count: None) for _ in range(3)]  # it remembers two
    with pytest.raises(VolumeFailed, match="restarted during a verification"):
        list(first.quarantine_rest())

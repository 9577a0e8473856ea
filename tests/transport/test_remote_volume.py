"""A worker's volume over the network, where it differs from one at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.shards import LocalVolume, VolumeFailed
from storage.shards.identity import VolumeIdentity, new_volume_key
from taskworker.transport.remote_volume import RemoteVolume
from tests.pool.helpers import served


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[RemoteVolume]:
    (tmp_path / "volume").mkdir()
    local = LocalVolume(tmp_path / "volume", VolumeIdentity("ab" * 16, 0, 1, new_volume_key(), 4, 6, 65536))
    with served(local, path=tmp_path / "s") as address:
        volume = RemoteVolume(address, "w")
        yield volume
        volume.close()
    local.close()


def test_a_worker_that_forgot_a_verification_is_as_good_as_away(remote: RemoteVolume) -> None:
    first, *_ = [remote.verify(lambda count: None) for _ in range(3)]  # it remembers two
    with pytest.raises(VolumeFailed, match="restarted during a verification"):
        list(first.quarantine_rest())

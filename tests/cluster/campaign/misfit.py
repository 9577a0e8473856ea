"""A worker that misbehaves when told to: started like ``taskworker worker``, conducts as lines on standard input.

========================  ===========================================================================
``honest``                as it should
``wrong-bytes``           other bytes than were stored, in right frames with right digests of their own
``other-chunks``          the shards of other chunks
``swallow``               nothing gets through to it or from it, while its heartbeats go on
``slow BYTES_PER_S``      its answers travel that fast
========================  ===========================================================================
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from blake3 import blake3

from storage.keys import Kind, ShardKey
from storage.shards import LocalVolume, Shard
from taskworker.protos import pool_pb2
from taskworker.worker.volume import VolumeWorker
from tests.cluster.campaign.line import Line

_FLIPPED = bytes(byte ^ 0x5A for byte in range(256))


class LyingVolume:
    """A local volume that tells the truth, or not.

    Attributes:
        conduct: ``honest``, ``wrong-bytes`` or ``other-chunks``.
    """

    def __init__(self, volume: LocalVolume) -> None:
        self._volume = volume
        self.conduct = "honest"
        self._by_length: dict[int, list[ShardKey]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._volume, name)

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> list[memoryview | None]:
        """See :meth:`ShardStore.fetch_all`."""
        if self.conduct == "other-chunks":
            wanted = [(self._other(key, length), length) for key, length in wanted]
        payloads = list(self._volume.fetch_all(wanted))
        if self.conduct == "wrong-bytes":
            return [None if payload is None else memoryview(bytes(payload).translate(_FLIPPED)) for payload in payloads]
        return payloads

    def payload_file(self, _key: ShardKey, _length: int) -> None:
        """See :class:`HasPayloadFiles`. Payloads from files would be true ones."""

    def read(self, key: ShardKey) -> Shard | None:
        """See :meth:`ShardStore.read`."""
        shard = self._volume.read(key)
        if shard is None or self.conduct == "honest":
            return shard
        if self.conduct == "wrong-bytes":
            payload = bytes(shard.payload).translate(_FLIPPED)
            return shard._replace(payload=payload, digest=blake3(payload).digest())
        other = self._volume.read(self._other(key, len(shard.payload)))
        return shard if other is None else other._replace(key=key)

    def _other(self, key: ShardKey, length: int) -> ShardKey:
        """The key of another chunk's shard of this length, if there is one."""
        if length not in self._by_length:
            keys = list(filter(lambda one: one[32] == Kind.CHUNK, self._volume.keys()))
            places = zip(keys, self._volume.locate_all(keys), strict=True)
            self._by_length[length] = [one for one, place in places if place and place.payload_length == length]
        return next((one for one in self._by_length[length] if one[:32] != key[:32]), key)


class Misfit(VolumeWorker):
    """See the module; the pool reaches it by a line."""

    def _open_volume(self, description: pool_pb2.PoolDescription) -> LocalVolume:
        self.lying = LyingVolume(super()._open_volume(description))
        return cast(LocalVolume, self.lying)

    def _join(self, pool_id: str) -> None:
        if not hasattr(self, "line"):
            self.line = Line(super().shard_address)
        super()._join(pool_id)

    @property
    def shard_address(self) -> str:
        """The line's."""
        return self.line.address

    def behave(self, conduct: str) -> None:
        """From now on."""
        kind, _, rate = conduct.partition(" ")
        self.lying.conduct = kind if kind in ("wrong-bytes", "other-chunks") else "honest"
        self.line.bytes_per_s = {"swallow": 0.0, "slow": float(rate or 0)}.get(kind)


def main() -> None:
    """Offer the volume until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["worker"])
    for name in ("--id", "--dir", "--listen", "--pool"):
        parser.add_argument(name, required=True)
    parser.add_argument("--capacity", type=int, required=True, help="GiB")
    for name in ("--json", "--supervised"):
        parser.add_argument(name, action="store_true", help="as it always is")
    arguments = parser.parse_args()
    worker = Misfit(arguments.id, arguments.pool, Path(arguments.dir), capacity=arguments.capacity << 30)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    worker.start(arguments.listen)
    print(
        json.dumps({"worker": arguments.id, "address": worker.address, "shard_address": worker.shard_address}),
        flush=True,
    )
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            worker.behave(line.strip())
    worker.stop()


if __name__ == "__main__":
    main()

"""Verifying a local volume: what is rotten, shard by shard, after all of it was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from storage.keys import ShardKey
from storage.shards.port import DamagedRanges, Location, Verdict
from storage.shards.record import HEADER_BYTES

if TYPE_CHECKING:
    from storage.shards.volume import LocalVolume


class LocalVerification:
    """See :class:`storage.shards.port.Verification`."""

    def __init__(self, volume: LocalVolume, bad: DamagedRanges) -> None:
        self._volume = volume
        self._bad = bad

    def judge(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """See :meth:`storage.shards.port.Verification.judge`."""
        return [self._judge_one(key) for key in keys]

    def _judge_one(self, key: ShardKey) -> Verdict:
        location = self._volume.locate(key)
        while location is not None and not self._is_good(key, location):
            again = self._volume.locate(key)
            if again == location and self._volume.discard(key, location):
                return Verdict.ROTTEN
            location = again  # a collect moved it meanwhile
        return Verdict.MISSING if location is None else Verdict.GOOD

    def quarantine_rest(self) -> Iterator[ShardKey]:
        """See :meth:`storage.shards.port.Verification.quarantine_rest`."""
        if not self._bad:
            return
        for key in self._volume.keys():  # noqa: SIM118 - a method of the port, no mapping
            place = self._volume.locate(key)
            if place is not None and not self._is_good(key, place) and self._volume.discard(key, place):
                yield key

    def _is_good(self, key: ShardKey, location: Location) -> bool:
        stop = location.offset + HEADER_BYTES + location.payload_length
        if not self._volume.covers(location.segment, stop) or not self._volume.holds(key, location):
            return False
        return not self._bad.hits(location.segment, location.offset, stop)

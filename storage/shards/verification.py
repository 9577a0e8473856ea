"""Verifying a local volume: what is rotten, shard by shard, after all of it was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from storage.keys import ShardKey
from storage.shards.port import DamagedRanges, Location, Verdict, VolumeUnavailable
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
        while location is not None and self._is_doubtful(key, location):
            verdict = self._look_again(key, location)
            if verdict is not None:
                return verdict
            location = self._volume.locate(key)  # a collect moved it meanwhile
        return Verdict.MISSING if location is None else Verdict.GOOD

    def quarantine_rest(self) -> Iterator[ShardKey]:
        """See :meth:`storage.shards.port.Verification.quarantine_rest`."""
        if not self._bad:
            return
        for key in self._volume.keys():  # noqa: SIM118 - a method of the port, no mapping
            place = self._volume.locate(key)
            if place is not None and self._is_doubtful(key, place):
                verdict = self._look_again(key, place)
                if verdict is not None and verdict is not Verdict.GOOD:
                    yield key

    def _look_again(self, key: ShardKey, location: Location) -> Verdict | None:
        """Read a shard that was found bad once more, and set it aside if it still is; None if it is elsewhere now.

        What the disk answered for a moment ago, but will not give, is in bad sectors: set aside like rot, so that
        it is made anew, and looked at again by later verifications.
        """
        try:
            if self._volume.discard(key, location):
                return Verdict.ROTTEN
        except VolumeUnavailable:
            return Verdict.UNREADABLE if self._volume.set_aside(key, location) else None
        return Verdict.GOOD if self._volume.locate(key) == location else None

    def _is_doubtful(self, key: ShardKey, location: Location) -> bool:
        stop = location.offset + HEADER_BYTES + location.payload_length
        if not self._volume.covers(location.segment, stop):
            return True
        if self._bad.hits(location.segment, location.offset, stop):
            return True
        try:
            return not self._volume.holds(key, location)
        except VolumeUnavailable:
            return True

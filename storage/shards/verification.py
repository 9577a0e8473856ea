"""Verification of a volume: verdicts on single shards, after everything was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from storage.keys import ShardKey
from storage.shards.index import ShardIndex
from storage.shards.port import DamagedRanges, Location, Verdict, VolumeUnavailable
from storage.shards.quarantine import Quarantine
from storage.shards.reading import Reader
from storage.shards.record import HEADER_BYTES
from storage.shards.record_reader import RecordReader
from storage.shards.segment_table import SegmentTable


class LocalVerification:
    """See :class:`storage.shards.port.Verification`.

    Args:
        bad: byte ranges that were bad or could not be read.
        index: locations of records.
        table: sizes of segments.
        records: reads headers.
        reader: lists all keys.
        quarantine: reads doubtful shards again, and sets bad ones aside.
    """

    def __init__(
        self,
        bad: DamagedRanges,
        *,
        index: ShardIndex,
        table: SegmentTable,
        records: RecordReader,
        reader: Reader,
        quarantine: Quarantine,
    ) -> None:
        self._bad = bad
        self._index = index
        self._table = table
        self._records = records
        self._reader = reader
        self._quarantine = quarantine

    def judge(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        """See :meth:`storage.shards.port.Verification.judge`."""
        return [self._judge_one(key) for key in keys]

    def _judge_one(self, key: ShardKey) -> Verdict:
        location = self._index.get(key)
        while location is not None and self._is_doubtful(key, location):
            verdict = self._look_again(key, location)
            if verdict is not None:
                return verdict
            location = self._index.get(key)  # a collect has moved it
        return Verdict.MISSING if location is None else Verdict.GOOD

    def quarantine_rest(self) -> Iterator[ShardKey]:
        """See :meth:`storage.shards.port.Verification.quarantine_rest`."""
        if not self._bad:
            return
        for key in self._reader.keys():  # noqa: SIM118 - a method of the port, no mapping
            place = self._index.get(key)
            if place is not None and self._is_doubtful(key, place):
                verdict = self._look_again(key, place)
                if verdict is not None and verdict is not Verdict.GOOD:
                    yield key

    def _look_again(self, key: ShardKey, location: Location) -> Verdict | None:
        """Read a shard that was found bad again, and set it aside if it still is; return None if it was moved.

        If the disk worked a moment ago but cannot read this shard, the shard is in bad sectors. It is set aside like a
        rotten one, so that it is made again, and later verifications try to read it again.
        """
        try:
            if self._quarantine.discard(key, location):
                return Verdict.ROTTEN
        except VolumeUnavailable:
            return Verdict.UNREADABLE if self._quarantine.set_aside(key, location) else None
        return Verdict.GOOD if self._index.get(key) == location else None

    def _is_doubtful(self, key: ShardKey, location: Location) -> bool:
        stop = location.offset + HEADER_BYTES + location.payload_length
        if not self._table.covers(location.segment, stop):
            return True
        if self._bad.hits(location.segment, location.offset, stop):
            return True
        try:
            return not self._records.holds(key, location)
        except VolumeUnavailable:
            return True

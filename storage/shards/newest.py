"""The newest version or tombstone on a volume, by its commit's sequence number."""

from __future__ import annotations

import threading

from storage.formats.sequences import bears_sequence, is_own, sequence_in
from storage.keys import ShardKey
from storage.shards.condition import Condition
from storage.shards.index import Newest, ShardIndex
from storage.shards.port import CorruptShard, Shard, VolumeUnavailable
from storage.shards.reading import Reader
from storage.shards.sectors import BadSectors
from storage.shards.segment_table import SegmentTable

_UNREADABLE_RECORDS_MAX = 16  # to skip in the search; each may take the disk seconds


class NewestRecord:
    """Reads the newest record as noted in the index, and searches for the next one if that is gone or unreadable.

    Args:
        index: has a note of the newest record.
        table: shows whether anything was appended during a search.
        reader: reads records.
        condition: makes the error if no record can be read.
        lock: lock of the volume; taken to correct the note.
    """

    def __init__(
        self, *, index: ShardIndex, table: SegmentTable, reader: Reader, condition: Condition, lock: threading.Lock
    ) -> None:
        self._index = index
        self._table = table
        self._reader = reader
        self._condition = condition
        self._lock = lock

    def read(self) -> Shard | None:
        """See :meth:`ShardStore.newest`."""
        known = self._index.newest
        if known is None:
            return None
        sectors = BadSectors(_UNREADABLE_RECORDS_MAX)
        shard = self._read_past(known.key, sectors)
        if shard is not None and is_own(shard.key, shard.payload):
            return shard
        return self._next(known, sectors, is_wrong=shard is not None)

    def _next(self, gone: Newest, sectors: BadSectors, *, is_wrong: bool) -> Shard | None:
        """Search for the newest readable record, if the one noted is unreadable, removed, or wrong."""
        size_before = self._table.bytes_indexed()
        found: tuple[Newest, Shard] | None = None
        for key in self._index.keys(b"", None):
            shard = self._read_past(key, sectors) if bears_sequence(key) else None
            if shard is not None and is_own(key, shard.payload):
                sequence = sequence_in(key, shard.payload)
                if found is None or sequence > found[0].sequence:
                    found = Newest(sequence, key), shard
        if found is None and sectors.last is not None:
            raise self._condition.unreadable(sectors.last) from sectors.last
        with self._lock:
            removed = self._index.get(gone.key) is None and self._index.aside(gone.key) is None
            # A record appended during the search may be newer than the one found. It was not noted, as the wrong
            # record claimed to be later.
            replaceable = removed or (is_wrong and self._table.bytes_indexed() == size_before)
            if replaceable and self._index.newest == gone:
                self._index.newest = None if found is None else found[0]
        return None if found is None else found[1]

    def _read_past(self, key: ShardKey, sectors: BadSectors) -> Shard | None:
        """Read a shard; return None if it is missing, rotten, or in a bad sector."""
        try:
            return self._reader.read(key)
        except CorruptShard:
            return None
        except VolumeUnavailable as error:
            if not isinstance(error.__cause__, OSError) or not sectors.go_past(error.__cause__):
                raise
            return None

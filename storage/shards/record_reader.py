"""Reading and checking single records of segments."""

from __future__ import annotations

from blake3 import blake3

from storage.keys import ShardKey
from storage.shards.filesystem import VolumeFile
from storage.shards.port import CorruptShard, Location, Shard
from storage.shards.record import HEADER_BYTES, parse_header
from storage.shards.segment_files import SegmentFiles


class RecordReader:
    """Reads records at known locations. Thread-safe.

    Args:
        key: key for the tags of the volume's records.
        files: the segment files.
    """

    def __init__(self, key: bytes, files: SegmentFiles) -> None:
        self._key = key
        self._files = files

    def read(self, key: ShardKey, location: Location) -> Shard:
        """Read the record at a location. A bad record is read again from the disk, as the cache may be at fault.

        Raises:
            CorruptShard: the record is not this shard's, or its bytes are not what was written.
            VolumeUnavailable: it cannot be read now.
        """
        file = self._files.file(location.segment)
        if file is None:
            raise CorruptShard(f"segment {location.segment} of {self._files.directory} is gone")
        try:
            return self._verified(file, key, location)
        except CorruptShard:
            self._files.drop_cache(file)
            return self._verified(file, key, location)

    def _verified(self, file: VolumeFile, key: ShardKey, location: Location) -> Shard:
        raw = memoryview(bytearray(HEADER_BYTES + location.payload_length))
        if not self._files.fill(file, [raw], len(raw), location.offset):
            raise CorruptShard(f"record at {self._named(location)} is cut short")
        header = parse_header(raw[:HEADER_BYTES], self._key)
        payload = raw[HEADER_BYTES:]
        if header is None or header.key != key or header.payload_length != len(payload):
            raise CorruptShard(f"record at {self._named(location)} does not belong to this shard")
        if blake3(payload).digest() != header.digest:
            raise CorruptShard(f"payload at {self._named(location)} is rotten")
        return Shard(key, header.object_length, header.digest, payload)

    def _named(self, location: Location) -> str:
        return f"{location.segment}:{location.offset} of {self._files.directory}"

    def holds(self, key: ShardKey, location: Location) -> bool:
        """Whether the record at a location is this shard's, judged by its header.

        Raises:
            VolumeUnavailable: it cannot be read now.
        """
        file = self._files.file(location.segment)
        raw = memoryview(bytearray(HEADER_BYTES))
        if file is None or not self._files.fill(file, [raw], HEADER_BYTES, location.offset):
            return False
        header = parse_header(raw, self._key)
        return header is not None and header[:3] == (key, location.object_length, location.payload_length)

"""Reading shards of a volume by their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from storage.errors import StorageError
from storage.keys import ShardKey
from storage.shards.durability import Durability
from storage.shards.filesystem import VolumeFile
from storage.shards.index import ShardIndex
from storage.shards.port import CorruptShard, Location, Shard
from storage.shards.quarantine import Quarantine
from storage.shards.record import HEADER_BYTES
from storage.shards.record_reader import RecordReader
from storage.shards.segment_files import SegmentFiles


class Reader:
    """Finds shards in the index, also if a compaction moves them meanwhile. Takes no lock.

    Args:
        index: locations of records.
        files: the segment files.
        records: reads and checks whole records.
        quarantine: restores records that can be read again.
        durability: flushes the index before its keys are listed.
    """

    def __init__(
        self,
        *,
        index: ShardIndex,
        files: SegmentFiles,
        records: RecordReader,
        quarantine: Quarantine,
        durability: Durability,
    ) -> None:
        self._index = index
        self._files = files
        self._records = records
        self._quarantine = quarantine
        self._durability = durability

    def read_into(self, key: ShardKey, buffers: Sequence[memoryview], length: int) -> bool:
        """See :meth:`ShardStore.read_into`."""
        location = self._index.get(key)
        if location is None or location.payload_length != length:
            return False
        file = self._files.file(location.segment)
        if file is not None and self._files.fill(file, buffers, length, location.offset + HEADER_BYTES):
            return True
        return self._was_moved(key, location) and self.read_into(key, buffers, length)

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> Sequence[memoryview | None]:
        """See :meth:`ShardStore.fetch_all`."""
        payloads: list[memoryview | None] = []
        for key, length in wanted:
            payload = memoryview(bytearray(length))
            payloads.append(payload if self.read_into(key, [payload], length) else None)
        return payloads

    def payload_file(self, key: ShardKey, length: int) -> tuple[VolumeFile, int] | None:
        """Return the open file that has a payload, and where it begins there.

        The payload stays there while the file is held, even if a compaction moves the shard meanwhile.

        Returns:
            None if the shard is not there, has another length, or its file has no descriptor.
        """
        location = self._index.get(key)
        if location is None or location.payload_length != length:
            return None
        file = self._files.file(location.segment)
        if file is None or file.descriptor() < 0:
            return None
        return file, location.offset + HEADER_BYTES

    def begin_fetch(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Sequence[bool] | StorageError], None],
    ) -> Callable[[], None]:
        """See :meth:`ShardStore.begin_fetch`. It has ended when this returns."""
        try:
            outcome: Sequence[bool] | StorageError = [
                self.read_into(key, [place], length) for (key, length), place in zip(wanted, into, strict=True)
            ]
        except StorageError as error:
            outcome = error
        done(outcome)
        return lambda: None

    def read(self, key: ShardKey) -> Shard | None:
        """See :meth:`ShardStore.read`."""
        location = self._index.get(key)
        if location is None:
            return self._quarantine.restored(key)
        try:
            return self._records.read(key, location)
        except CorruptShard:
            if self._was_moved(key, location):
                return self.read(key)
            raise

    def _was_moved(self, key: ShardKey, location: Location) -> bool:
        """Whether a compaction has moved the shard since it was looked up."""
        return self._index.get(key) not in (None, location)

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        """See :meth:`ShardStore.keys`."""
        self._durability.flush_index()
        yield from self._index.keys(start, stop)

"""Quarantine for records that are bad or unreadable: they are not read any more, but their bytes are kept."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from storage.keys import ShardKey
from storage.shards.entries import Entries
from storage.shards.index import ShardIndex
from storage.shards.port import CorruptShard, Location, Shard, VolumeUnavailable
from storage.shards.record_reader import RecordReader

log = logging.getLogger(__name__)


class Quarantine:
    """Sets records aside, and restores them once they can be read. Methods take the volume's lock where necessary.

    Args:
        directory: directory of the volume, for messages.
        index: has the list of records set aside.
        entries: entries of valid records.
        records: reads records.
        lock: lock of the volume.
    """

    def __init__(
        self, directory: Path, *, index: ShardIndex, entries: Entries, records: RecordReader, lock: threading.Lock
    ) -> None:
        self._directory = directory
        self._index = index
        self._entries = entries
        self._records = records
        self._lock = lock

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """See :meth:`ShardStore.discard`."""
        if not wrong:
            try:
                self._records.read(key, location)
            except CorruptShard:
                pass  # confirmed
            else:
                return False
        return self.set_aside(key, location, wrong=wrong)

    def set_aside(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """Exclude a record from reads, unless the shard has another one by now. Its bytes stay, and count as live."""
        with self._lock:
            return self._entries.set_aside(key, location, wrong=wrong)

    def restored(self, key: ShardKey) -> Shard | None:
        """Restore and return a shard that was set aside as unreadable, if it can be read now; else return None.

        Raises:
            VolumeUnavailable: it still cannot be read.
        """
        aside = self._index.aside(key)
        if aside is None or aside.wrong:
            return None
        try:
            shard = self._records.read(key, aside.location)
        except CorruptShard:
            return None
        with self._lock:
            if self._entries.restore(key, aside):
                log.info("shard %s of %s can be read again", key.hex(), self._directory)
        return shard

    def restore_readable(self) -> None:
        """Try to restore all records set aside, except those proved wrong."""
        for key, aside in self._index.all_aside().items():
            if not aside.wrong:
                try:
                    self.restored(key)
                except VolumeUnavailable as error:
                    log.info("shard %s of %s stays set aside: %s", key.hex(), self._directory, error)

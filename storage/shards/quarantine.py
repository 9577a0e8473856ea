"""Records that are bad, or cannot be read: nobody reads them, but their bytes are kept."""

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
    """Sets records aside, and takes them back once they read well. Each method takes the volume's lock where it must.

    Args:
        directory: the volume's, for messages.
        index: has the list of what is set aside.
        entries: where records count, or not any more.
        records: reads them.
        lock: the volume's.
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
                pass  # as its reader found it
            else:
                return False
        return self.set_aside(key, location, wrong=wrong)

    def set_aside(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        """Let nobody read a record any more, unless the shard has another by now. Its bytes stay, and count as live."""
        with self._lock:
            return self._entries.set_aside(key, location, wrong=wrong)

    def restored(self, key: ShardKey) -> Shard | None:
        """A shard that was set aside for being unreadable, and reads well now: it counts as there again.

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
        """Look again at all that was set aside for being unreadable or bad."""
        for key, aside in self._index.all_aside().items():
            if not aside.wrong:
                try:
                    self.restored(key)
                except VolumeUnavailable as error:
                    log.info("shard %s of %s stays set aside: %s", key.hex(), self._directory, error)

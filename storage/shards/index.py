"""A volume's index: shard key → where its record is. It can be made again from the segments at any time.

New entries stay in memory and are written to LMDB in batches, together with how far each segment is indexed.
After a crash, the segments are read from there on to make the lost entries again.
"""

from __future__ import annotations

import heapq
import logging
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

from storage.errors import FormatError, StoreReadOnly, StoreUnavailable
from storage.keys import SHARD_KEY_BYTES, ShardKey
from storage.shards.filesystem import FileSystem
from storage.shards.port import Location, VolumeFailed, VolumeReadOnly, VolumeUnavailable
from storage.shards.record import HEADER_BYTES
from storage.system.faults import Fault, fault_of
from storage.system.lmdb_env import Environment
from storage.system.lmdb_types import Database, Transaction

log = logging.getLogger(__name__)

_DATABASES = ("shards", "segments", "aside", "facts")
_LOCATION = struct.Struct("<IIII")
_ASIDE = struct.Struct("<IIIIB")
ASIDE_MAX = 100_000  # records set aside, about 30 MB of memory; a disk with so many bad records must be replaced
_CHECKPOINT = struct.Struct("<QQ")
_SEGMENT_KEY = struct.Struct(">I")
_NEWEST = struct.Struct("<Q36s")
_NEWEST_KEY = b"newest"
_UNREAD_PREFIX = b"unread"
_UNREAD_KEY = struct.Struct(">6sII")
_UNREAD_STOP = struct.Struct("<I")

_CHECK_PAGE = 4096  # entries checked in one transaction

Pending = dict[ShardKey, bytes | None]


class Aside(NamedTuple):
    """A record set aside: where it is, and whether it is known not to belong to its object (otherwise: unreadable)."""

    location: Location
    wrong: bool


class IndexDamaged(VolumeFailed):
    """The index is damaged, and must be made again from the segments."""


class Newest(NamedTuple):
    """The version or tombstone with the highest commit sequence that a volume has stored."""

    sequence: int
    key: ShardKey


class Unread(NamedTuple):
    """Bytes of a segment that could not be read when it was indexed, and may contain records."""

    segment: int
    start: int
    stop: int


class SegmentState:
    """A segment's size (its valid length, all of it indexed) and its bytes of live records."""

    __slots__ = ("live", "size")

    def __init__(self, size: int, live: int) -> None:
        self.size = size
        self.live = live


class ShardIndex:
    """Maps shard keys to locations. Lookups see entries in memory and in LMDB. Writers hold the volume's lock.

    On a read-only disk new entries stay in memory; if there is no database on it yet, all entries do.
    """

    def __init__(self, path: Path, filesystem: FileSystem) -> None:
        self._path = path
        self._filesystem = filesystem
        self._damaged = False
        self._pending: Pending = {}
        self._flushing: Pending = {}
        self._gone: set[ShardKey] = set()  # pending removals of entries that LMDB has or is getting
        self._aside: dict[ShardKey, Aside] = {}
        self._aside_changed: set[ShardKey] = set()
        self._flushing_aside: dict[ShardKey, Aside | None] = {}
        self._environment = self._open()
        try:
            self._load_aside()
            self.unread = self._unread_flushing = self._unread_stored = self._stored_unread()
            self.newest = self._flushing_newest = self._newest_stored = self._stored_newest()
        except IndexDamaged as error:
            log.warning("%s from the segments", error)
            self.clear()

    def _open(self) -> Environment | None:
        try:
            return self._filesystem.database(self._path, _DATABASES)
        except FormatError as error:
            log.warning("the index in %s is damaged and is made again from the segments: %s", self._path, error)
            return self._fresh()
        except StoreReadOnly:
            return None
        except StoreUnavailable as error:
            raise VolumeUnavailable(str(error)) from error

    def _fresh(self) -> Environment | None:
        """Replace the database with an empty one; None if the disk is read-only."""
        try:
            self._filesystem.remove_tree(self._path)
            return self._filesystem.database(self._path, _DATABASES)
        except (OSError, StoreReadOnly) as error:
            if isinstance(error, OSError) and fault_of(error) is not Fault.READ_ONLY:
                raise VolumeUnavailable(f"the index in {self._path} cannot be made again now: {error}") from error
            return None

    def _stored_newest(self) -> Newest | None:
        """Return the newest version as of the last flush."""
        if self._environment is None:
            return None
        with self._checked():
            raw = self._environment.get("facts", _NEWEST_KEY)
            if raw is None:
                return None
            sequence, key = _NEWEST.unpack(raw)
            return Newest(sequence, ShardKey(key))

    def _stored_unread(self) -> frozenset[Unread]:
        if self._environment is None:
            return frozenset()
        found = set()
        with self._checked():
            for page in self._environment.pages("facts", _UNREAD_PREFIX, _UNREAD_PREFIX + b"\xff"):
                for key, value in page:
                    _, segment, start = _UNREAD_KEY.unpack(key)
                    found.add(Unread(segment, start, *_UNREAD_STOP.unpack(value)))
        return frozenset(found)

    def is_unread(self, segment: int) -> bool:
        """Whether a part of a segment could not be read; such a segment is neither appended to nor compacted."""
        return any(unread.segment == segment for unread in self.unread)

    @property
    def writable(self) -> bool:
        """Whether entries can be written to disk."""
        return self._environment is not None and not self._environment.read_only

    def probe(self) -> str:
        """Try again whether entries can be written to disk; return why not, or an empty text.

        Raises:
            VolumeUnavailable: the database cannot be opened now.
        """
        if self._environment is None:
            self._environment = self._open()
        return self._environment.probe() if self._environment is not None else f"{self._path} cannot be created"

    def get(self, key: ShardKey) -> Location | None:
        """Return where the shard is. Entries move pending → flushing → LMDB, and are searched in this order."""
        value = self._pending.get(key, b"")
        if value == b"":
            value = self._flushing.get(key, b"")
            if value == b"":
                value = self._stored(key)
        return None if value is None else Location(*_LOCATION.unpack(value))

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        """Return the positions of the keys that have no entry, in ascending order."""
        pending, flushing = self._pending, self._flushing
        if not pending and not flushing:
            return self._not_stored(keys, range(len(keys)))
        unknown: list[int] = []
        absent: list[int] = []
        for at, key in enumerate(keys):
            value = pending.get(key, b"")
            if value == b"":
                value = flushing.get(key, b"")
            if value == b"":
                unknown.append(at)
            elif value is None:
                absent.append(at)
        return sorted(absent + self._not_stored([keys[at] for at in unknown], unknown))

    def _not_stored(self, keys: Sequence[ShardKey], positions: Sequence[int]) -> list[int]:
        """Return the positions of the keys that are not in LMDB."""
        environment = self._environment
        if environment is None:
            return list(positions)
        with self._checked():
            found = environment.read(lambda txn: list(txn.cursor(environment.databases["shards"]).getmulti(keys)))
            if any(len(value) != _LOCATION.size for _, value in found):
                raise FormatError("an entry has the wrong length")
        if len(found) == len(keys):
            return []
        stored = {key for key, _ in found}
        return [at for at, key in zip(positions, keys, strict=True) if key not in stored]

    def _stored(self, key: ShardKey) -> bytes | None:
        if self._environment is None:
            return None
        with self._checked():
            value = self._environment.get("shards", key)
            if value is not None and len(value) != _LOCATION.size:
                raise FormatError("an entry has the wrong length")
            return value

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Translate errors of LMDB. It has no checksums: damage shows as errors or as invalid entries."""
        try:
            yield
        except (FormatError, struct.error) as error:
            self._damaged = True
            raise IndexDamaged(f"the index in {self._path} is damaged ({error}); it is made again") from error
        except StoreReadOnly as error:
            raise VolumeReadOnly(str(error)) from error
        except StoreUnavailable as error:
            raise VolumeUnavailable(str(error)) from error

    def recent(self, key: ShardKey) -> Location | None:
        """Like :meth:`get`, for entries that have not reached LMDB yet."""
        value = self._pending.get(key, b"")
        if value == b"":
            value = self._flushing.get(key)
        return Location(*_LOCATION.unpack(value)) if value else None

    def put(self, key: ShardKey, location: tuple[int, int, int, int]) -> None:
        """Add or move an entry (in memory until the next flush)."""
        self._pending[key] = _LOCATION.pack(*location)

    def replace(
        self, key: ShardKey, segment: int, offset: int, payload_length: int, object_length: int
    ) -> Location | None:
        """Like :meth:`put`; returns the replaced entry if it had not reached LMDB yet."""
        pending = self._pending
        old = pending.get(key, b"")
        if old == b"":
            old = self._flushing.get(key)
        pending[key] = _LOCATION.pack(segment, offset, payload_length, object_length)
        return None if old is None else Location(*_LOCATION.unpack(old))

    def remove(self, key: ShardKey) -> None:
        """Remove an existing entry (in memory until the next flush)."""
        # An entry that is not pending must be in LMDB, or on its way there.
        if key not in self._pending or self._flushing.get(key) is not None or self._stored(key) is not None:
            self._gone.add(key)
        self._pending[key] = None

    @property
    def pending(self) -> int:
        """Number of entries that a flush would write."""
        return len(self._pending)

    @property
    def changed(self) -> bool:
        """Whether there is anything for a flush to write."""
        facts = self.newest, self.unread
        return bool(self._pending or self._aside_changed or facts != (self._newest_stored, self._unread_stored))

    def freeze(self) -> bool:
        """Take the pending entries for :meth:`flush`; False if a flush is in progress, or the disk is read-only."""
        if self._flushing or not self.writable:
            return False
        self._flushing, self._pending = self._pending, {}
        self._flushing_newest = self.newest
        self._unread_flushing = self.unread
        # Copy the present locations: those of records moved from now on are not durable after this flush.
        self._flushing_aside = {key: self._aside.get(key) for key in self._aside_changed}
        self._gone = set()
        return True

    def flush(self, segments: dict[int, tuple[int, int]], dropped: list[int]) -> None:
        """Write the frozen entries and the segments' (size, live) in one durable transaction."""
        entries, changed = self._flushing, self._flushing_aside
        newest, environment, unread = self._flushing_newest, self._environment, self._unread_flushing
        if environment is None:
            raise VolumeReadOnly(f"the index in {self._path} is kept in memory: its disk is read-only")

        def work(txn: Transaction) -> None:
            shards = txn.cursor(environment.databases["shards"])
            shards.putmulti([(key, value) for key in sorted(entries) if (value := entries[key]) is not None])
            for key, value in entries.items():
                if value is None and shards.set_key(key):
                    shards.delete()
            table = environment.databases["aside"]
            for key, aside in changed.items():
                if aside is None:
                    txn.delete(key, db=table)
                else:
                    txn.put(key, _ASIDE.pack(*aside.location, aside.wrong), db=table)
            table = environment.databases["segments"]
            for number, state in segments.items():
                txn.put(_SEGMENT_KEY.pack(number), _CHECKPOINT.pack(*state), db=table)
            for number in dropped:
                txn.delete(_SEGMENT_KEY.pack(number), db=table)
            self._write_facts(txn, environment.databases["facts"], newest, unread)

        with self._checked():
            environment.write(work)
        self._flushing = {}
        self._newest_stored, self._unread_stored = newest, unread
        self._aside_changed -= {key for key, aside in changed.items() if self._aside.get(key) == aside}

    def _write_facts(self, txn: Transaction, table: Database, newest: Newest | None, unread: frozenset[Unread]) -> None:
        if newest is not None:
            txn.put(_NEWEST_KEY, _NEWEST.pack(*newest), db=table)
        else:
            txn.delete(_NEWEST_KEY, db=table)
        for segment, start, _ in self._unread_stored - unread:
            txn.delete(_UNREAD_KEY.pack(_UNREAD_PREFIX, segment, start), db=table)
        for segment, start, stop in unread - self._unread_stored:
            txn.put(_UNREAD_KEY.pack(_UNREAD_PREFIX, segment, start), _UNREAD_STOP.pack(stop), db=table)

    def thaw(self) -> None:
        """Take frozen entries back after a failed flush; newer pending ones win."""
        self._pending = {**self._flushing, **self._pending}
        self._flushing = {}

    def segments(self) -> dict[int, SegmentState]:
        """Return the size and live bytes of every segment in LMDB."""
        found: dict[int, SegmentState] = {}
        if self._environment is None:
            return found
        with self._checked():
            for page in self._environment.pages("segments", b""):
                for key, value in page:
                    found[_SEGMENT_KEY.unpack(key)[0]] = SegmentState(*_CHECKPOINT.unpack(value))
        return found

    def keys(self, start: bytes, stop: bytes | None) -> Iterator[ShardKey]:
        """Yield keys in order, including those set aside. The volume flushes pending entries first, if possible."""

        def within(key: bytes) -> bool:
            return start <= key and (stop is None or key < stop)

        pending = {**self._flushing, **self._pending}
        added = sorted(key for key, value in pending.items() if value is not None and within(key))
        aside = sorted(key for key in list(self._aside) if within(key))
        all_stored = chain.from_iterable(self._stored_keys(start, stop))
        if not pending and not aside:
            return all_stored
        stored = (key for key in all_stored if pending.get(key, b"") is not None)
        return (ShardKey(key) for key, _ in groupby(heapq.merge(stored, added, aside)))

    def _stored_keys(self, start: bytes, stop: bytes | None) -> Iterator[list[ShardKey]]:
        if self._environment is None:
            return
        pages = self._environment.key_pages("shards", start, stop)
        while True:
            with self._checked():
                page = next(pages, None)
                if page is not None and set(map(len, page)) != {SHARD_KEY_BYTES}:
                    raise FormatError("a key has the wrong length")
            if page is None:
                return
            yield [ShardKey(key) for key in page]

    def live_bytes(self) -> Counter[int]:
        """Count the bytes of indexed records and records set aside, by segment.

        A record that is being moved may count twice.
        """
        found: Counter[int] = Counter()
        if self._environment is not None:
            with self._checked():
                for page in self._environment.pages("shards", b""):
                    for _, value in page:
                        segment, _, payload_length, _ = _LOCATION.unpack(value)
                        found[segment] += HEADER_BYTES + payload_length
        for entries in (self._pending, self._flushing):
            for entry in list(entries.values()):
                if entry is not None:
                    segment, _, payload_length, _ = _LOCATION.unpack(entry)
                    found[segment] += HEADER_BYTES + payload_length
        for aside in self.all_aside().values():
            found[aside.location.segment] += HEADER_BYTES + aside.location.payload_length
        return found

    # -- records set aside -----------------------------------------------------------------------

    def _load_aside(self) -> None:
        if self._environment is None or "aside" not in self._environment.databases:
            return
        with self._checked():
            for page in self._environment.pages("aside", b""):
                for key, value in page:
                    *place, wrong = _ASIDE.unpack(value)
                    self._aside[ShardKey(key)] = Aside(Location(*place), bool(wrong))

    def aside(self, key: ShardKey) -> Aside | None:
        """Return a shard's record that was set aside, if there is one."""
        return self._aside.get(key)

    def all_aside(self) -> dict[ShardKey, Aside]:
        """Return all records set aside, by shard key."""
        return dict(self._aside)

    def set_aside(self, key: ShardKey, aside: Aside) -> bool:
        """Remember a record as set aside; False if there are too many."""
        if len(self._aside) >= ASIDE_MAX and key not in self._aside:
            return False
        self._aside[key] = aside
        self._aside_changed.add(key)
        return True

    def forget_aside(self, key: ShardKey) -> Aside | None:
        """Forget a record set aside, after a good one replaced it or its shard was removed; returns it, if any."""
        if not self._aside:
            return None
        found = self._aside.pop(key, None)
        if found is not None:
            self._aside_changed.add(key)
        return found

    def check(self) -> None:
        """Check that every entry in LMDB is in order and can be looked up.

        Raises:
            IndexDamaged: an entry is not.
        """
        environment = self._environment
        start: bytes | None = b""
        while environment is not None and start is not None:
            with self._checked():
                start = environment.read(
                    lambda txn, at=start: self._check_page(txn, environment.databases["shards"], at)  # type: ignore[misc]
                )

    @staticmethod
    def _check_page(txn: Transaction, database: Database, start: bytes) -> bytes | None:
        """Check a page of entries from ``start`` on; return where the next page starts, None at the end."""
        cursor = txn.cursor(database)
        last = b""
        if not (cursor.set_range(start) if start else cursor.first()):
            return None
        for count, (key, value) in enumerate(cursor, 1):
            if len(key) != SHARD_KEY_BYTES or len(value) != _LOCATION.size or key <= last:
                raise FormatError("entries are out of order")
            if txn.get(key, db=database) != value:
                raise FormatError("an entry cannot be looked up")
            last = key
            if count == _CHECK_PAGE:
                return key + b"\0"
        return None

    def entries(self) -> int:
        """Return the number of entries; one being replaced may count twice, one being removed may still count."""
        stored = 0
        if self._environment is not None:
            with self._checked():
                stored = self._environment.entries("shards")
        added = sum(value is not None for entries in (self._pending, self._flushing) for value in entries.values())
        return stored + added - sum(self._pending.get(key, b"") is None for key in self._gone)

    def clear(self) -> None:
        """Forget everything; the caller makes the index again from the segments."""
        if self._environment is not None:
            self._environment.close()
        self._environment = self._fresh()
        self._pending, self._flushing, self._gone = {}, {}, set()
        self._aside, self._aside_changed = {}, set()
        self.unread = self._unread_flushing = self._unread_stored = frozenset()
        self.newest = self._flushing_newest = self._newest_stored = None
        self._damaged = False

    def close(self) -> None:
        """Close the LMDB environment, and remove it if it is damaged: the next opening makes it again."""
        if self._environment is not None:
            self._environment.close()
        if self._damaged:
            try:
                self._filesystem.remove_tree(self._path)
            except OSError as error:
                log.warning(
                    "the damaged index in %s could not be removed; the next opening will: %s", self._path, error
                )

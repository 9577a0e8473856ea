"""The results of maintenance and statistics; all sizes are in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage.erasure import ErasureProfile

DAMAGE_LISTED_MAX = 1000


@dataclass(frozen=True, slots=True)
class ShredReport:
    """What :meth:`FileStorage.shred` has done.

    Attributes:
        versions: how many versions stay that could have been shredded, not counting those stored meanwhile.
        keys: how many shredding keys were destroyed.
        secrets: how many secrets were kept, of single versions or of many that follow each other.
    """

    versions: int
    keys: int
    secrets: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A problem that was found.

    Attributes:
        time_ms: when it was found.
        kind: ``"rotten"``, ``"missing"``, ``"unavailable"`` (cannot be read now), ``"lost"``, ``"offline"``, or
            ``"unreadable"``: a version's record.
        object_id: hex id of the object concerned; "" if it is a whole volume.
        slot: slot of the shard in its stripe, -1 if unknown or none.
        volume: slot of the volume, -1 if none.
        text: one line for people.
    """

    time_ms: int
    kind: str
    object_id: str
    slot: int
    volume: int
    text: str


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """Outcome of a scrub. ``damaged`` lists at most 1,000 shards; the counts are complete.

    ``unreadable`` versions have a record or manifest that cannot be read; repair cannot restore them.
    ``unavailable`` shards could not be read now, so nothing is known about them. ``misplaced`` shards of a pool are
    intact, but on another worker than they should be, such as one that stood in, until a repair moves them.
    """

    shards_checked: int
    bytes_checked: int
    rotten: int
    missing: int
    damaged: list[Damage]
    unreadable: int = 0
    unavailable: int = 0
    misplaced: int = 0

    @property
    def clean(self) -> bool:
        """Whether every shard of every object exists and is intact."""
        return not (self.rotten or self.missing or self.unreadable or self.unavailable)


@dataclass(frozen=True, slots=True)
class HealingState:
    """The present state of healing damage that reads have found.

    Attributes:
        waiting: stripes that a read found damaged and that are not healed yet.
        healed_shards: shards rebuilt since the store was opened.
        failed_stripes: stripes that could not be healed since then; repair tries them again.
        ended_ms: when a stripe was last handled, in milliseconds since 1970 (UTC); 0 if none was yet.
    """

    waiting: int
    healed_shards: int
    failed_stripes: int
    ended_ms: int


@dataclass(frozen=True, slots=True)
class RepairState:
    """The progress of a repair, in objects. Those found wait in a queue, the most urgent first.

    Attributes:
        examined: objects examined so far.
        expected: about how many there are.
        missing: objects that lack shards, and wait.
        repaired: objects that lacked shards, and have them again.
        misplaced: objects that have all their shards, but not all in their place, and wait.
        moved: objects whose misplaced shards were moved to their place.
        lost: objects of which too few shards are left.
        endangered: numbers of files with a waiting object that is less safe than after repair. The key is how many
            more stores, whichever, may be lost before one of the file's objects becomes unreadable (-1: it is now).
        deferred: objects whose missing shards are not rebuilt yet, because stores that may have them are expected back.
    """

    examined: int
    expected: int
    missing: int
    repaired: int
    misplaced: int
    moved: int
    lost: int
    endangered: Mapping[int, int]
    deferred: int = 0

    @property
    def all_examined(self) -> bool:
        """Whether all objects were examined, so that no more will be found."""
        return self.examined >= self.expected


@dataclass(frozen=True, slots=True)
class RepairReport:
    """Outcome of a repair. ``lost`` lists at most 1,000 objects that cannot be rebuilt or read.

    Of the shards written, ``shards_moved`` belong to objects that had all their shards, but some in the wrong place.
    ``deferred`` objects lack shards that were not rebuilt yet, because stores that may have them are expected back.
    ``unavailable`` objects could not be read or looked up now, since volumes or workers are out of reach or do not
    answer; ``unavailable_why`` has the reason for the first. They are not lost: repair again when those are back.
    ``unwritable`` has the reason for each volume that lacks shards and takes none, as it is full or read-only; in a
    pool, where others stand in for full workers, one if too few have space.
    """

    objects_examined: int
    shards_rebuilt: int
    bytes_rebuilt: int
    lost: list[Damage]
    lost_count: int
    shards_moved: int = 0
    bytes_moved: int = 0
    deferred: int = 0
    unavailable: int = 0
    unavailable_why: str = ""
    unwritable: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every object has all its shards again, provided that all volumes are online."""
        return not (self.lost_count or self.deferred or self.unavailable or self.unwritable)


@dataclass(frozen=True, slots=True)
class CollectReport:
    """Outcome of a collect. ``stores_missed`` stores were away; a later collect frees their space."""

    objects_removed: int
    shards_removed: int
    bytes_freed: int
    segments_compacted: int
    stores_missed: int = 0


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """Outcome of a rebuild.

    ``skipped`` describes what was found but could not be restored. ``undecided`` describes which stores could not be
    examined, and what cannot be decided without them. Unless it is empty, the rebuild is not finished.
    """

    files: int
    versions: int
    skipped: list[str]
    undecided: list[str]


@dataclass(frozen=True, slots=True)
class VolumeStats:
    """Statistics of one volume.

    ``state`` is ``"ok"``, ``"incomplete"`` (waits for repair), ``"read-only"``, ``"full"`` or ``"offline"``;
    ``cause`` says why it is not ok, or what failed recently. ``takes_no_writes``: it is read-only or full, even if its
    state is ``"incomplete"``.
    """

    slot: int
    path: Path
    state: str
    segments: int
    bytes_used: int
    bytes_live: int
    bytes_free: int
    shards: int
    cause: str = ""
    takes_no_writes: bool = False


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How a cache was used since the store was opened.

    Attributes:
        hits: how often something was there.
        misses: how often it was not.
        bytes_used: memory in use, about.
    """

    hits: int
    misses: int
    bytes_used: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Statistics of a store.

    ``logical_bytes`` is the total size of all heads. ``versions`` includes those of deleted files until they are
    collected. ``behind``: the catalog is older than the volumes and waits for a rebuild; until then, no loss is known
    to be survivable. ``unfinished`` says what the latest rebuild could not examine, and what to do about it; it is
    empty if the rebuild finished.
    """

    store_id: str
    files: int
    versions: int
    logical_bytes: int
    stored_bytes: int
    profile: ErasureProfile
    accelerator: str
    volumes: list[VolumeStats]
    losses_survivable: int
    recent_damage: list[Damage]
    needs_rebuild: bool
    behind: bool = False
    unfinished: str = ""

"""What maintenance and statistics tell; all sizes in bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage.erasure import ErasureProfile

Progress = Callable[[int, int], None]
"""Called with (done, total); bytes for push, get and scrub, objects otherwise; total 0 when unknown."""

DAMAGE_LISTED_MAX = 1000


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing found wrong.

    Attributes:
        time_ms: when it was found.
        kind: ``"rotten"``, ``"missing"``, ``"unavailable"`` (cannot be read now), ``"lost"``, ``"offline"``, or
            ``"unreadable"``: a version's record.
        object_id: hex id of the object concerned, "" if it is a whole volume.
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

    ``unreadable`` versions have a record or manifest that cannot be read; repair cannot mend them.
    ``unavailable`` shards could not be read for now: nothing is known of them.
    """

    shards_checked: int
    bytes_checked: int
    rotten: int
    missing: int
    damaged: list[Damage]
    unreadable: int = 0
    unavailable: int = 0

    @property
    def clean(self) -> bool:
        """Whether every shard of every object is there and intact."""
        return not (self.rotten or self.missing or self.unreadable or self.unavailable)


@dataclass(frozen=True, slots=True)
class HealingState:
    """Healing of what reads find damaged, as it is now.

    Attributes:
        waiting: stripes that a read found damaged and that are not healed yet.
        healed_shards: made anew since the store was opened.
        failed_stripes: could not be healed since then; repair tries them again.
        ended_ms: when a stripe was last dealt with, since 1970 (UTC); 0: none was yet.
    """

    waiting: int
    healed_shards: int
    failed_stripes: int
    ended_ms: int


@dataclass(frozen=True, slots=True)
class RepairState:
    """How far a repair is, in objects; those found wait in a queue whose most urgent ones are made first.

    Attributes:
        examined: looked at so far.
        expected: about how many there are.
        missing: found that lack shards, and wait.
        repaired: that lacked shards, and have them again.
        misplaced: found that have all their shards, not all in their place, and wait.
        moved: that had, and have them in their place now.
        lost: of which too few shards are left.
        endangered: files with an object that waits and is less safe than it will be, by how many more whole
            stores may be lost, whichever, before the first of their objects cannot be read (-1: now).
        deferred: found that lack shards which stores that are expected back may have; they are not made again yet.
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
        """Whether what is found is all there is."""
        return self.examined >= self.expected


@dataclass(frozen=True, slots=True)
class RepairReport:
    """Outcome of a repair. ``lost`` lists at most 1,000 objects that cannot be made again, or not be read.

    Of the shards made, ``shards_moved`` were of objects that had all theirs, in the wrong place. ``deferred`` objects
    lack shards that stores which are expected back may have: those were not made again yet.
    ``unavailable`` objects could not be read or looked for now, since volumes or workers are out of reach or do not
    answer; why, says ``unavailable_why`` of the first. They are not lost: repair again when those are back.
    ``unwritable`` says of each volume that is full or read-only, and still lacks shards, why it takes none.
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
        """Whether every object has all its shards again, as far as all volumes are there."""
        return not (self.lost_count or self.deferred or self.unavailable or self.unwritable)


@dataclass(frozen=True, slots=True)
class CollectReport:
    """Outcome of a collect. ``stores_missed`` were away: what they hold is freed by one that they are there for."""

    objects_removed: int
    shards_removed: int
    bytes_freed: int
    segments_compacted: int
    stores_missed: int = 0


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """Outcome of a rebuild.

    ``skipped`` says in words what was found but could not be taken over. ``undecided`` says which stores could not be
    examined, and what cannot be decided without them: while there is any, the rebuild is not finished.
    """

    files: int
    versions: int
    skipped: list[str]
    undecided: list[str]


@dataclass(frozen=True, slots=True)
class VolumeStats:
    """One volume.

    ``state`` is ``"ok"``, ``"incomplete"`` (waits for repair), ``"read-only"``, ``"full"`` or ``"offline"``;
    ``cause`` says why it is not ok, or what it could not do lately. ``takes_no_writes``: it is read-only or full,
    whether it is incomplete or not.
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
class StoreStats:
    """A store at a glance.

    ``logical_bytes`` sums the sizes of all heads; ``versions`` of deleted files count until collected. ``behind``
    says that the catalog is older than the volumes, and waits for a rebuild; no loss is known to be survivable then.
    ``unfinished`` says what the latest rebuild could not examine, and what to do; empty if it was finished.
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

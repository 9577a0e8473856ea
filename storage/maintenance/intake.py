"""The first half of a rebuild: what the volumes show is taken into the catalog, as far as it is believed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from storage.catalog import Catalog, CatalogTransaction
from storage.errors import FormatError, InsufficientWorkers, InvalidArgument
from storage.fleet import Fleet
from storage.keys import ID_BYTES, Kind
from storage.limits import check_filename, check_user_id
from storage.maintenance.belief import Belief
from storage.manifest import object_id
from storage.reports import Progress
from storage.shards import Shard, ShardStore, VolumeFailed, VolumeUnavailable
from storage.versions import decode_tombstone, decode_version

_LISTED_MAX = 10_000
_ROUNDS_MAX = 3  # of looks for stores that came while others were examined
# Nodes are not asked for: they are read as versions that are believed name them, so that nobody can send any others.
_SHOWN = frozenset({Kind.VERSION, Kind.TOMBSTONE})


@dataclass(slots=True)
class Tally:
    """How far a rebuild has come, and what it tells in the end."""

    progress: Progress | None
    sequence: int
    done: int = 0
    skipped: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    def step(self, count: int = 1) -> None:
        """So many more objects were dealt with."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, 0)

    def skip(self, text: str) -> None:
        """Something cannot be taken over."""
        if len(self.skipped) < _LISTED_MAX:
            self.skipped.append(text)

    def leave_undecided(self, text: str) -> None:
        """Something cannot be decided before what is out of reach was examined."""
        if len(self.undecided) < _LISTED_MAX:
            self.undecided.append(text)


class Examined:
    """Which stores have shown all their records, and which may hold more than anybody has shown.

    A store that is not trusted is examined by none, and waited for by none: honest stores have enough of everything
    without those that lie, as long as these are no more than may lie at once.

    Args:
        volumes: the stores.
        liars_max: how many may lie at once.
    """

    def __init__(self, volumes: Fleet[Any], liars_max: int) -> None:
        self._volumes = volumes
        self._liars_max = liars_max
        self._done: set[int] = set()
        self._reasons: dict[int, str] = {}

    def note(self, slot: int) -> None:
        """A store has shown everything."""
        self._done.add(slot)

    def note_failed(self, slot: int, reason: str) -> None:
        """A store has not."""
        self._reasons[slot] = reason

    def pending(self) -> list[tuple[int, ShardStore]]:
        """Stores that are there, and were not asked yet."""
        known = self._done | self._reasons.keys()
        return [(slot, volume) for slot, volume in self._volumes.online() if slot not in known and self._counts(slot)]

    def lacking(self) -> list[tuple[int, str]]:
        """The slots of stores that may hold what nobody has shown, and why each was not examined."""
        slots = (slot for slot in self._volumes.slots if slot not in self._done and self._counts(slot))
        return [(slot, self._reason(slot)) for slot in slots]

    def may_come_back(self) -> bool:
        """Whether what is not there now may be on a store that was not examined, or has gone since."""
        away = any(self._volumes.volume(slot) is None for slot in self._volumes.slots if self._counts(slot))
        return away or bool(self.lacking())

    def _counts(self, slot: int) -> bool:
        """Whether what a store may hold is waited for."""
        distrusted = [other for other in self._volumes.slots if not self._volumes.trusts(other)]
        return slot not in distrusted or len(distrusted) > self._liars_max

    def _reason(self, slot: int) -> str:
        if slot in self._reasons:
            return self._reasons[slot]
        if self._volumes.volume(slot) is not None:
            return "it came, or was found to lie, while the others were examined"
        return self._volumes.reason(slot) or "it is away"


def take_in(catalog: Catalog, volumes: Fleet[Any], belief: Belief, tally: Tally, examined: Examined) -> None:
    """Copy every version and tombstone that is intact and believed into the catalog; further copies change nothing.

    A store that fails while it is asked holds up nobody: it counts as not examined.

    Raises:
        InsufficientWorkers: the store's secret is not known, and too few volumes agree on what it signed.
    """
    for _ in range(_ROUNDS_MAX):
        for slot, volume in examined.pending():
            try:
                _examine(catalog, volume, slot, belief, tally)
                examined.note(slot)
            except (VolumeFailed, VolumeUnavailable) as error:
                # A worker that answers nonsense, or is too slow, loses trust by it, in the end.
                volumes.failed(slot, volume, error)
                examined.note_failed(slot, str(error))
    for slot in volumes.slots:
        if not volumes.trusts(slot):
            tally.skip(f"all that {volumes.name(slot)} shows: it gave wrong answers")
    _report_refused(belief, volumes, tally)


def _examine(catalog: Catalog, volume: ShardStore, slot: int, belief: Belief, tally: Tally) -> None:
    for batch in volume.records(_SHOWN):
        believed = [shard for shard in batch if _is_believed(catalog, shard, slot, belief, tally)]
        if believed:
            catalog.transact(lambda txn, batch=believed: _take_all(txn, batch))  # type: ignore[misc]
        tally.step(len(batch))


def _is_believed(catalog: Catalog, shard: Shard, slot: int, belief: Belief, tally: Tally) -> bool:
    """Whether an object is well formed, and the store's own."""
    identifier, kind, raw = shard.key[:ID_BYTES], shard.key[ID_BYTES], bytes(shard.payload)
    try:
        if kind == Kind.VERSION:
            stored = decode_version(raw, identifier)
            check_filename(stored.record.filename)
            check_user_id(stored.record.user_id)
            known = catalog.version(stored.record.file_id, identifier) is not None
            return known or belief.in_version(stored, slot)
        if object_id(raw) != identifier:
            raise FormatError("does not match its id")
        return belief.in_tombstone(identifier, raw, decode_tombstone(raw), slot)
    except (FormatError, InvalidArgument) as error:
        lost = "; unless another volume tells of it, the file that it deleted is back" if kind == Kind.TOMBSTONE else ""
        tally.skip(f"{Kind(kind).name.lower()} {identifier.hex()}: {error}{lost}")
        return False


def _take_all(txn: CatalogTransaction, batch: list[Shard]) -> None:
    added = 0
    for shard in batch:
        identifier, kind, raw = shard.key[:ID_BYTES], shard.key[ID_BYTES], bytes(shard.payload)
        if kind == Kind.TOMBSTONE:
            txn.bury(decode_tombstone(raw).file_id, raw)
        else:
            file_id = decode_version(raw).record.file_id
            known = txn.version(file_id, identifier)
            if known != raw:  # which is what the id says; what the catalog has instead is damaged
                txn.put_version(file_id, identifier, raw)
                added += known is None
    if added:
        counters = txn.counters()
        txn.set_counters(msgspec.structs.replace(counters, versions=counters.versions + added))


def _report_refused(belief: Belief, volumes: Fleet[Any], tally: Tally) -> None:
    undecided = 0
    for object_id_, kind, holders, unchecked in belief.refused():
        undecided += unchecked
        names = ", ".join(volumes.name(slot) for slot in holders)
        tally.skip(
            f"{kind.name.lower()} {object_id_.hex()} is not signed by this store, and {len(holders)} of the "
            f"{belief.quorum} volumes that must agree on it then hold it ({names}); it is not believed"
        )
    if undecided:
        # To go on without them, and collect then, would destroy files that are there.
        raise InsufficientWorkers(
            f"{undecided:,} versions or deletions are signed, and whether by this store cannot be told: too few "
            f"workers show their share of its secret, and fewer than {belief.quorum} agree; bring more workers back "
            "and run rebuild again"
        )

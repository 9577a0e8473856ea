"""The first half of a rebuild: enters what the volumes show into the catalog, if it is accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from storage.catalog import Catalog, CatalogTransaction
from storage.errors import FormatError, InsufficientWorkers, InvalidArgument, StorageError
from storage.fleet.fleet import Fleet
from storage.formats.manifest import object_id
from storage.formats.tombstones import decode_tombstone
from storage.formats.versions import checked_outline
from storage.keys import Kind, kind_of, object_id_of
from storage.limits import check_filename, check_user_id
from storage.maintenance.belief import Belief
from storage.maintenance.examined import Examined
from storage.maintenance.round_robin import RoundRobin
from storage.progress import Progress
from storage.shards import Shard

_LISTED_MAX = 10_000
_REFUSED_LISTED_MAX = 1_000
_MALFORMED_LISTED_MAX = 100  # for each store
_ROUNDS_MAX = 3  # of asking stores that came while others were examined


@dataclass(slots=True)
class Tally:
    """The progress of a rebuild, and its report. ``key_ids``: the keys that sealed versions of volumes need."""

    progress: Progress | None
    sequence: int
    done: int = 0
    skipped: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    malformed: Counter[int] = field(default_factory=Counter)
    key_ids: set[bytes] = field(default_factory=set)

    def step(self, count: int = 1) -> None:
        """Count objects that were handled."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, 0)

    def skip(self, text: str) -> None:
        """Report something that cannot be restored."""
        if len(self.skipped) < _LISTED_MAX:
            self.skipped.append(text)

    def skip_malformed(self, slot: int, text: str) -> None:
        """Report a malformed record of a store, up to a limit for each store."""
        self.malformed[slot] += 1
        if self.malformed[slot] <= _MALFORMED_LISTED_MAX:
            self.skip(text)

    def leave_undecided(self, text: str) -> None:
        """Report something that cannot be decided until unreachable stores were examined."""
        if len(self.undecided) < _LISTED_MAX:
            self.undecided.append(text)


@dataclass(frozen=True, slots=True)
class Intake:
    """Enters what stores show into the catalog.

    Args:
        catalog: the catalog to fill.
        volumes: the stores.
        belief: decides which objects to accept.
        copies: how many copies there are of each object.
        liars_max: how many stores may lie at once.
        clock_s: monotonic seconds.
        tally: collects progress and reports.
    """

    catalog: Catalog
    volumes: Fleet[Any]
    belief: Belief
    copies: int
    liars_max: int
    clock_s: Callable[[], float]
    tally: Tally

    def run(self, examined: Examined) -> None:
        """Copy every version and tombstone that is intact and accepted; further copies of one have no effect.

        A store that fails meanwhile, or is refused, does not stop this; it counts as not examined.

        Raises:
            InsufficientWorkers: the store's secret is unknown, and too few volumes agree on signed objects.
        """
        shown = RoundRobin(
            self.volumes,
            examined,
            self.belief.agreement,
            liars_max=self.liars_max,
            believed_max=self._believed_max,
            clock_s=self.clock_s,
            take=lambda slot, page: self._take(slot, page, unsigned=examined.counts(slot)),
        )
        for _ in range(_ROUNDS_MAX):
            shown.run()
        for slot in self.volumes.slots:
            if not self.volumes.trusts(slot):
                self.belief.agreement.forget(slot)
                self.tally.skip(f"unsigned objects from {self.volumes.name(slot)}: it gave wrong answers")
        _report_refused(self.belief, self.volumes, self.tally)

    def _believed_max(self) -> int:
        """The most records of the catalog's objects that a store can show: all copies, and the ones they replaced."""
        objects = self.catalog.counters().versions + sum(1 for _ in self.catalog.tombstones())
        return 2 * self.copies * objects

    def _take(self, slot: int, page: list[Shard], *, unsigned: bool) -> int:
        """Enter those of a store's records that are accepted; return their number."""
        believed: list[Shard] = []
        questions: dict[bytes, Shard] = {}
        for shard in page:
            try:
                question = self._question(shard)
            except (FormatError, InvalidArgument) as error:
                self._skip_malformed(shard, slot, error)
                continue
            if question is None:
                believed.append(shard)
            elif unsigned:
                questions[question] = shard
        believed += [questions[question] for question in self.belief.agreed(list(questions), slot)]
        if believed:
            self.tally.key_ids |= self.catalog.transact(lambda txn: _take_all(txn, believed))
        self.tally.step(len(page))
        return len(believed)

    def _question(self, shard: Shard) -> bytes | None:
        """None if an object is accepted; otherwise the question on which others must agree.

        Raises:
            FormatError, InvalidArgument: the object is malformed.
        """
        identifier, kind, raw = object_id_of(shard.key), kind_of(shard.key), bytes(shard.payload)
        if kind == Kind.VERSION:
            found = checked_outline(raw, identifier)
            if found.record is not None:
                check_filename(found.record.filename)
                check_user_id(found.record.user_id)
            question = self.belief.about_version(found)
            known = question is not None and self.catalog.version(found.file_id, identifier) is not None
            return None if known else question
        if object_id(raw) != identifier:
            raise FormatError("does not match its id")
        return self.belief.about_tombstone(identifier, raw, decode_tombstone(raw))

    def _skip_malformed(self, shard: Shard, slot: int, error: StorageError) -> None:
        kind = Kind(kind_of(shard.key))
        lost = "; unless another volume has it, what it deleted is back" if kind == Kind.TOMBSTONE else ""
        self.tally.skip_malformed(slot, f"{kind.name.lower()} {object_id_of(shard.key).hex()}: {error}{lost}")


def _take_all(txn: CatalogTransaction, batch: list[Shard]) -> set[bytes]:
    """Enter objects; return the ids of the keys that sealed versions among them need."""
    added = 0
    key_ids: set[bytes] = set()
    for shard in batch:
        identifier, kind, raw = object_id_of(shard.key), kind_of(shard.key), bytes(shard.payload)
        if kind == Kind.TOMBSTONE:
            txn.keep_tombstone(decode_tombstone(raw).key, raw)
        else:
            found = checked_outline(raw, identifier)
            file_id = found.file_id
            key_ids |= {found.key_id} if found.key_id else set()
            known = txn.version(file_id, identifier)
            if known != raw:  # ``raw`` matches the id, so the catalog's bytes are damaged
                txn.put_version(file_id, identifier, raw)
                added += known is None
    if added:
        counters = txn.counters()
        txn.set_counters(msgspec.structs.replace(counters, versions=counters.versions + added))
    return key_ids


def _report_refused(belief: Belief, volumes: Fleet[Any], tally: Tally) -> None:
    undecided, count, quorum = 0, 0, belief.agreement.quorum
    for object_id_, kind, holders, unchecked in belief.refused():
        undecided += unchecked
        count += 1
        if count > _REFUSED_LISTED_MAX:
            continue
        names = ", ".join(volumes.name(slot) for slot in holders)
        tally.skip(
            f"{kind.name.lower()} {object_id_.hex()} is not signed by this store, and {len(holders)} of the "
            f"{quorum} volumes that must agree on it hold it ({names}); it is not accepted"
        )
    if count > _REFUSED_LISTED_MAX:
        tally.skip(f"{count - _REFUSED_LISTED_MAX:,} more that are not signed, and that too few volumes agree on")
    if undecided:
        # Going on without them, and collecting afterwards, would destroy existing files.
        raise InsufficientWorkers(
            f"{undecided:,} versions or deletions are signed, but it cannot be verified that this store signed them: "
            f"too few workers have given their share of its secret, and fewer than {quorum} agree; bring more workers "
            "back and run rebuild again"
        )

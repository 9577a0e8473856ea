"""The first half of a rebuild: what the volumes show is taken into the catalog, as far as it is believed."""

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
from storage.formats.versions import decode_tombstone, decode_version
from storage.keys import Kind, kind_of, object_id_of
from storage.limits import check_filename, check_user_id
from storage.maintenance.belief import Belief
from storage.maintenance.examined import Examined
from storage.maintenance.round_robin import RoundRobin
from storage.reports import Progress
from storage.shards import Shard

_LISTED_MAX = 10_000
_REFUSED_LISTED_MAX = 1_000
_MALFORMED_LISTED_MAX = 100  # of each store
_ROUNDS_MAX = 3  # of looks for stores that came while others were examined


@dataclass(slots=True)
class Tally:
    """How far a rebuild has come, and what it tells in the end."""

    progress: Progress | None
    sequence: int
    done: int = 0
    skipped: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    malformed: Counter[int] = field(default_factory=Counter)

    def step(self, count: int = 1) -> None:
        """So many more objects were dealt with."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, 0)

    def skip(self, text: str) -> None:
        """Something cannot be taken over."""
        if len(self.skipped) < _LISTED_MAX:
            self.skipped.append(text)

    def skip_malformed(self, slot: int, text: str) -> None:
        """A record that a store shows is malformed; none can fill the whole list with those."""
        self.malformed[slot] += 1
        if self.malformed[slot] <= _MALFORMED_LISTED_MAX:
            self.skip(text)

    def leave_undecided(self, text: str) -> None:
        """Something cannot be decided before what is out of reach was examined."""
        if len(self.undecided) < _LISTED_MAX:
            self.undecided.append(text)


@dataclass(frozen=True, slots=True)
class Intake:
    """Takes what stores show into the catalog.

    Args:
        catalog: what to fill.
        volumes: the stores.
        belief: what to believe of them.
        copies: how many there are of each object.
        liars_max: how many stores may lie at once.
        now_s: a clock, in seconds.
        tally: how far it has come.
    """

    catalog: Catalog
    volumes: Fleet[Any]
    belief: Belief
    copies: int
    liars_max: int
    now_s: Callable[[], float]
    tally: Tally

    def run(self, examined: Examined) -> None:
        """Copy every version and tombstone that is intact and believed; further copies change nothing.

        A store that fails while it is asked, or is refused, holds up nobody: it counts as not examined.

        Raises:
            InsufficientWorkers: the store's secret is not known, and too few volumes agree on what it signed.
        """
        shown = RoundRobin(
            self.volumes,
            examined,
            self.belief.agreement,
            liars_max=self.liars_max,
            believed_max=self._believed_max,
            now_s=self.now_s,
            take=lambda slot, page: self._take(slot, page, unsigned=examined.counts(slot)),
        )
        for _ in range(_ROUNDS_MAX):
            shown.run()
        for slot in self.volumes.slots:
            if not self.volumes.trusts(slot):
                self.belief.agreement.forget(slot)
                self.tally.skip(f"what {self.volumes.name(slot)} shows and is not signed: it gave wrong answers")
        _report_refused(self.belief, self.volumes, self.tally)

    def _believed_max(self) -> int:
        """How many records a store can show that the catalog has: each copy, and a former one that it replaced."""
        objects = self.catalog.counters().versions + sum(1 for _ in self.catalog.tombstones())
        return 2 * self.copies * objects

    def _take(self, slot: int, page: list[Shard], *, unsigned: bool) -> int:
        """Take over what is believed of some records that a store shows; how many those are."""
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
            self.catalog.transact(lambda txn: _take_all(txn, believed))
        self.tally.step(len(page))
        return len(believed)

    def _question(self, shard: Shard) -> bytes | None:
        """None if an object is believed; otherwise what others are to agree on.

        Raises:
            FormatError, InvalidArgument: it is malformed.
        """
        identifier, kind, raw = object_id_of(shard.key), kind_of(shard.key), bytes(shard.payload)
        if kind == Kind.VERSION:
            stored = decode_version(raw, identifier)
            check_filename(stored.record.filename)
            check_user_id(stored.record.user_id)
            question = self.belief.about_version(stored)
            known = question is not None and self.catalog.version(stored.record.file_id, identifier) is not None
            return None if known else question
        if object_id(raw) != identifier:
            raise FormatError("does not match its id")
        return self.belief.about_tombstone(identifier, raw, decode_tombstone(raw))

    def _skip_malformed(self, shard: Shard, slot: int, error: StorageError) -> None:
        kind = Kind(kind_of(shard.key))
        lost = "; unless another volume tells of it, the file that it deleted is back" if kind == Kind.TOMBSTONE else ""
        self.tally.skip_malformed(slot, f"{kind.name.lower()} {object_id_of(shard.key).hex()}: {error}{lost}")


def _take_all(txn: CatalogTransaction, batch: list[Shard]) -> None:
    added = 0
    for shard in batch:
        identifier, kind, raw = object_id_of(shard.key), kind_of(shard.key), bytes(shard.payload)
        if kind == Kind.TOMBSTONE:
            txn.keep_tombstone(decode_tombstone(raw).file_id, raw)
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
    undecided, count, quorum = 0, 0, belief.agreement.quorum
    for object_id_, kind, holders, unchecked in belief.refused():
        undecided += unchecked
        count += 1
        if count > _REFUSED_LISTED_MAX:
            continue
        names = ", ".join(volumes.name(slot) for slot in holders)
        tally.skip(
            f"{kind.name.lower()} {object_id_.hex()} is not signed by this store, and {len(holders)} of the "
            f"{quorum} volumes that must agree on it then hold it ({names}); it is not believed"
        )
    if count > _REFUSED_LISTED_MAX:
        tally.skip(f"{count - _REFUSED_LISTED_MAX:,} more that are not signed, and that too few volumes agree on")
    if undecided:
        # To go on without them, and collect then, would destroy files that are there.
        raise InsufficientWorkers(
            f"{undecided:,} versions or deletions are signed, and whether by this store cannot be told: too few "
            f"workers show their share of its secret, and fewer than {quorum} agree; bring more workers back "
            "and run rebuild again"
        )

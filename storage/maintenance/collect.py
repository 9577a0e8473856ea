"""Collect: remove what no version of an existing file reaches, and free its space.

Mark writes the key of every live object to one of 256 buckets, by its first byte. Sweep loads one bucket at a time, and
compares it with the same range of the catalog's claims and of each volume's index. So memory is needed for a 256th of
the keys.

Claims are dropped once every store was swept: while one is away, a push of the same content should find what that store
still has, instead of storing it again. The catalog records which stores missed a collect. Claims that say what a client
wrote itself stay for some longer: see :func:`_judge_lapsed`.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from storage.batching import batched
from storage.catalog import Catalog, user_key
from storage.catalog.ended import Ended
from storage.catalog.port import USER_KEY_BYTES, Holding
from storage.errors import InsufficientWorkers, StoreFull
from storage.keys import STRIPE_KEY_BYTES, Kind, ShardKey, StripeKey, kind_of, object_id_of, stripe_of
from storage.limits import MIB
from storage.maintenance.context import MaintenanceContext
from storage.maintenance.counting import count_again
from storage.maintenance.live import live_objects
from storage.maintenance.set_aside import SetAside
from storage.progress import Progress
from storage.reports import CollectReport
from storage.shards import ShardStore
from storage.shards.filesystem import raise_if_full
from storage.stripes.stripes import metadata_stripe
from storage.system.private_paths import make_own_directory, open_private
from storage.write.registry import KeptUploads

log = logging.getLogger(__name__)

_MISSED = "collect-missed"
_BUCKETS = 256
_SWEEP_KEYS = 4096  # if buckets have fewer keys than this, several are swept at once
_PACED_S_MIN = 0.01  # shorter steps are combined
_MARK_BYTES = STRIPE_KEY_BYTES + USER_KEY_BYTES
_MARKS_BYTES_MAX = 16 * MIB  # kept in memory: 300,000 marks
_REMOVE_BATCH = 512
_NOBODY = bytes(USER_KEY_BYTES)
_slots = msgspec.msgpack.Decoder(set[int])
_KEPT_OF_CLIENTS_MAX = 65_536
LIVE_RATIO_MAX = 0.6  # rewriting a segment that is 60 % live frees 40 % for 60 % copied


def collect(
    context: MaintenanceContext,
    grace_s: float,
    progress: Progress | None = None,
    pace: Callable[[float], None] | None = None,
) -> CollectReport:
    """Free everything that is unreachable. Pushes may run meanwhile.

    Args:
        context: the store.
        grace_s: how long the claims of an interrupted push are kept, in seconds during which the store was open.
        progress: called with (steps done, total steps).
        pace: called with the seconds that each step took; may sleep, to leave resources for others.

    Raises:
        InsufficientWorkers: no store is available.
        StoreFull: there is no room for moving live records out of segments to free; nothing was freed.
    """
    if not context.stripes.volumes.online():
        raise InsufficientWorkers("no store is available, so nothing can be freed; try again when the stores are back")
    with context.collecting, context.walks.walking(), context.pins.kept_during_collect():
        ended = Ended(context.catalog, context.walks.oldest())
        uploads = _kept_uploads(context, grace_s)
        steps = _Steps(progress, pace, context.catalog.counters().versions)
        marks, set_aside = _Marks(context.scratch), SetAside(context.stripes.volumes.report, context.runtime.wall_ms)
        try:
            _mark(context, marks, set_aside, ended, steps)
            tally = _sweep(context, marks, set_aside, uploads, steps)
            thinned = _drop_dead_versions(context, ended)
        finally:
            marks.close()
        count_again(context, ended, thinned)
        missed = _note_missed(context, tally)
        _compact(context, tally)
        steps.finish()
        return CollectReport(len(tally.objects), tally.shards, tally.freed, tally.segments, len(missed))


def missed_stores(catalog: Catalog, slots: Iterable[int]) -> set[int]:
    """Slots of the stores that missed recent collects; all stores, if that record is damaged."""
    raw = catalog.document(_MISSED)
    try:
        return set() if raw is None else _slots.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("the list of stores that a collect has missed is damaged, so each counts as missed: %s", error)
        return set(slots)


def _note_missed(context: MaintenanceContext, tally: _Tally) -> set[int]:
    """Add the stores that missed this collect, and are expected back, to those that missed earlier ones."""
    volumes = context.stripes.volumes
    swept = {slot for slot, buckets in tally.swept.items() if buckets == _BUCKETS}
    missed = set(volumes.slots) - swept
    before = missed_stores(context.catalog, volumes.slots)
    if (after := (before | missed) - swept) != before:
        try:
            context.catalog.save_document(_MISSED, msgspec.msgpack.encode(sorted(after)))
        except StoreFull:
            log.warning("no space to note which stores missed a collect; the next one sweeps them")
    return missed & {*volumes.away(), *(slot for slot, _ in volumes.online())}


@dataclass(slots=True)
class _Tally:
    objects: _Distinct
    shards: int = 0
    freed: int = 0
    segments: int = 0
    swept: Counter[int] = field(default_factory=Counter)  # buckets, by store
    kept_of_clients: int = 0  # claims that have lapsed


class _Distinct:
    """Counts distinct stripe keys, which arrive in order within each bucket, without keeping earlier buckets."""

    def __init__(self) -> None:
        self._count = 0
        self._bucket: set[StripeKey] = set()

    def add(self, stripe: StripeKey) -> None:
        self._bucket.add(stripe)

    def next_bucket(self) -> None:
        self._count += len(self._bucket)
        self._bucket = set()

    def __len__(self) -> int:
        return self._count + len(self._bucket)


class _Steps:
    def __init__(self, progress: Progress | None, pace: Callable[[float], None] | None, versions: int) -> None:
        self._progress = progress
        self._pace = pace
        self._total = versions + _BUCKETS + 1
        self._done = 0
        self._began_s = time.perf_counter()

    def step(self, count: int = 1) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)
        taken_s = time.perf_counter() - self._began_s
        if self._pace is not None and taken_s >= _PACED_S_MIN:
            self._pace(taken_s)
            self._began_s = time.perf_counter()

    def finish(self) -> None:
        if self._progress is not None:
            self._progress(self._total, self._total)


class _Marks:
    """Live keys by bucket: in memory while there are few, so that a full disk can be collected; then in files."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._directory: Path | None = None
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._bytes = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, mark: bytes) -> None:
        """Keep a mark."""
        self._buckets[mark[0]] += mark
        self._bytes += len(mark)
        self._count += 1
        if self._bytes >= _MARKS_BYTES_MAX:
            self._spill()

    def _spill(self) -> None:
        try:
            if self._directory is None:
                make_own_directory(self._scratch)
                self._directory = Path(tempfile.mkdtemp(prefix="collect-", dir=self._scratch))
            for bucket, marks in enumerate(self._buckets):
                with open(self._directory / f"{bucket:02x}", "ab", opener=open_private) as stream:
                    stream.write(marks)
        except OSError as error:
            raise_if_full(error)
            raise
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._bytes = 0

    def take(self, buckets: range) -> set[bytes]:
        """Remove and return the marks of some buckets."""
        return set().union(*(self._take(bucket) for bucket in buckets))

    def _take(self, bucket: int) -> set[bytes]:
        marks, self._buckets[bucket] = self._buckets[bucket], bytearray()
        if self._directory is not None:
            marks = bytearray((self._directory / f"{bucket:02x}").read_bytes()) + marks
        return {bytes(marks[at : at + _MARK_BYTES]) for at in range(0, len(marks), _MARK_BYTES)}

    def close(self) -> None:
        """Remove the files."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def _kept_uploads(context: MaintenanceContext, grace_s: float) -> KeptUploads:
    """The uploads whose claims are kept. Decided before the first version is read, to include those that end later."""
    uploads = context.uploads.kept(grace_s)
    try:
        context.uploads.keep()
    except StoreFull:
        log.warning("no space to note which uploads have lapsed; the next collect notes it")
    return uploads


def _mark(context: MaintenanceContext, marks: _Marks, set_aside: SetAside, ended: Ended, steps: _Steps) -> None:
    users: dict[str, bytes] = {}
    catalog, copies, in_use = context.catalog, context.metadata_copies, context.readings
    for live in live_objects(catalog, context.versions, copies, set_aside, ended, steps.step, in_use):
        user = users.get(live.user_id)
        if user is None:
            users.clear()  # files are ordered by age, not by owner: keep only the last one
            user = users[live.user_id] = user_key(live.user_id.encode()) if live.user_id else _NOBODY
        marks.add(live.stripe + user)


def _sweep(
    context: MaintenanceContext, all_marks: _Marks, set_aside: SetAside, uploads: KeptUploads, steps: _Steps
) -> _Tally:
    tally = _Tally(_Distinct())
    width = _sweep_width(context, len(all_marks))
    for first in range(0, _BUCKETS, width):
        buckets = range(first, first + width)
        marks = all_marks.take(buckets)
        start, stop = bytes([first]), bytes([buckets.stop]) if buckets.stop < _BUCKETS else None
        live = {stripe_of(mark) for mark in marks}
        claimed, lapsed = _judge_claims(context, marks, set_aside, uploads, start, stop)
        live |= claimed
        if not set_aside:  # a version that cannot be read may need any of them
            _sweep_nodes(context, live, start, stop)
        if _sweep_volumes(context, live, set_aside, start, stop, tally, width):
            _drop_claims(context, _judge_lapsed(context, lapsed, tally))
        tally.objects.next_bucket()
        steps.step(width)
    return tally


def _sweep_width(context: MaintenanceContext, marks: int) -> int:
    """How many buckets to sweep at once, a power of two; for each sweep, every store lists its keys in them."""
    volumes = context.stripes.volumes
    most = marks
    for slot, volume in volumes.online():
        if volumes.trusts(slot):
            with volumes.guard(slot, volume):
                most = max(most, volume.usage().shards)
    width = _BUCKETS
    while width > 1 and width * most > _BUCKETS * _SWEEP_KEYS:
        width //= 2
    return width


def _judge_claims(
    context: MaintenanceContext,
    marks: set[bytes],
    set_aside: SetAside,
    uploads: KeptUploads,
    start: bytes,
    stop: bytes | None,
) -> tuple[set[StripeKey], list[Holding]]:
    """The stripes of claims that stay, and the claims that have lapsed."""
    kept: set[StripeKey] = set()
    lapsed: list[Holding] = []
    for holding in context.catalog.holdings(start, stop):
        marked = holding.stripe + holding.user in marks
        if holding.problem:
            set_aside.report(
                holding.stripe, f"a claim on {object_id_of(holding.stripe).hex()} is kept: {holding.problem}"
            )
        if marked or holding.problem or uploads.keep(holding.uploads) or set_aside.spares(holding.user):
            kept.add(holding.stripe)
        else:
            lapsed.append(holding)
    return kept, lapsed


def _judge_lapsed(context: MaintenanceContext, lapsed: list[Holding], tally: _Tally) -> list[Holding]:
    """The claims that can be dropped.

    A store that is away, and is not waited for, may still have what a client wrote. If somebody stores the same chunk
    before it comes back, the hashes in the claim tell that it is not to blame for that. So some claims with hashes stay
    until every store that is known is there.
    """
    volumes = context.stripes.volumes
    if all(volumes.volume(slot) is not None for slot in volumes.slots):
        return lapsed
    dropped: list[Holding] = []
    for holding in lapsed:
        if holding.hashes and tally.kept_of_clients < _KEPT_OF_CLIENTS_MAX:
            tally.kept_of_clients += 1
        else:
            dropped.append(holding)
    return dropped


def _drop_claims(context: MaintenanceContext, lapsed: list[Holding]) -> None:
    for batch in batched(lapsed, _REMOVE_BATCH):
        # A push that relies on one of them waits for the end of the block, and then enters its own claim.
        with context.pins.removing(holding.stripe for holding in batch) as going:
            context.catalog.drop_holdings([holding for holding in batch if holding.stripe in going])


def _sweep_volumes(
    context: MaintenanceContext,
    live: set[StripeKey],
    set_aside: SetAside,
    start: bytes,
    stop: bytes | None,
    tally: _Tally,
    width: int,
) -> bool:
    """Remove what is not live from all stores; return whether all were available. Lying stores do not delay this."""
    volumes = context.stripes.volumes
    swept: set[int] = set()
    for slot, volume in volumes.online():
        if not volumes.trusts(slot):
            continue
        with volumes.guard(slot, volume):
            _sweep_volume(context, volume, live, set_aside, start, stop, tally)
            swept.add(slot)
    tally.swept.update(dict.fromkeys(swept, width))
    return not volumes.away() and all(slot in swept for slot, _ in volumes.online() if volumes.trusts(slot))


def _sweep_nodes(context: MaintenanceContext, live: set[StripeKey], start: bytes, stop: bytes | None) -> None:
    def stripe(node_id: bytes) -> StripeKey:
        return metadata_stripe(Kind.NODE, node_id, context.metadata_copies)

    dead = (node_id for node_id in context.catalog.nodes(start, stop) if stripe(node_id) not in live)
    for batch in batched(dead, _REMOVE_BATCH):
        with context.pins.removing(map(stripe, batch)) as going:
            context.catalog.drop_nodes([node_id for node_id in batch if stripe(node_id) in going])


def _is_needed(key: ShardKey, live: set[StripeKey]) -> bool:
    """Whether a shard belongs to a live object, or is a volume's own mark."""
    return stripe_of(key) in live or kind_of(key) == Kind.MARK


def _sweep_volume(
    context: MaintenanceContext,
    volume: ShardStore,
    live: set[StripeKey],
    set_aside: SetAside,
    start: bytes,
    stop: bytes | None,
    tally: _Tally,
) -> None:
    dead = (key for key in volume.keys(start, stop) if not (_is_needed(key, live) or set_aside.needs(key)))
    for batch in batched(dead, _REMOVE_BATCH):
        with context.pins.removing(stripe_of(key) for key in batch) as going:
            free = [key for key in batch if stripe_of(key) in going]
            context.pins.removals += len(free)
            context.stripes.forget(stripe_of(key) for key in free)
            tally.shards += volume.remove(free)
        for key in free:
            tally.objects.add(stripe_of(key))


def _drop_dead_versions(context: MaintenanceContext, ended: Ended) -> list[bytes]:
    """Remove the records of deleted versions; return the ids of the files that have others."""
    thinned: dict[bytes, None] = {}

    def dead() -> Iterator[tuple[bytes, bytes]]:
        for kept in context.catalog.versions():
            if kept.problem or kept.file_id in context.readings:
                continue
            if kept.entry is None or ended.has(kept.file_id, kept.version_id):
                if kept.entry is not None:
                    thinned[kept.file_id] = None
                yield kept.file_id, kept.version_id

    for batch in batched(dead(), _REMOVE_BATCH):
        context.catalog.drop_versions(batch, counted=True)
    return list(thinned)


def _compact(context: MaintenanceContext, tally: _Tally) -> None:
    full: StoreFull | None = None
    # First free segments without live records, on all volumes, to make room for moving the rest.
    for ratio in (0.0, LIVE_RATIO_MAX):
        for slot, volume in context.stripes.volumes.online():
            try:
                with context.stripes.volumes.guard(slot, volume):
                    segments, freed = volume.compact(ratio)
                    tally.segments += segments
                    tally.freed += freed
                    if freed:
                        context.stripes.volumes.note_freed(slot)
            except StoreFull as error:
                full = error
    if full is not None and not tally.freed:
        raise full

"""Collect: drop what no version of an existing file reaches, and give the space back.

Mark notes the key of every live object in one of 256 buckets by its first byte; sweep takes
one bucket at a time into memory and compares it with the same range of the catalog's claims and of
each volume's index. Memory is a 256th of the keys, whatever the size of the store.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.batching import batched
from storage.catalog import user_key
from storage.catalog.port import USER_KEY_BYTES, Holding
from storage.errors import StoreFull
from storage.keys import STRIPE_KEY_BYTES, Kind, StripeKey
from storage.limits import MIB
from storage.live import live_objects
from storage.maintenance.context import MaintenanceContext
from storage.reports import CollectReport, Progress
from storage.setaside import SetAside
from storage.shards import ShardStore
from storage.shards.filesystem import raise_if_full
from storage.stripes import metadata_stripe
from storage.uploads import KeptUploads

log = logging.getLogger(__name__)

_BUCKETS = 256
_PACED_S_MIN = 0.01  # shorter steps are taken together
_MARK_BYTES = STRIPE_KEY_BYTES + USER_KEY_BYTES
_MARKS_BYTES_MAX = 16 * MIB  # kept in memory: 300,000 marks
_REMOVE_BATCH = 512
_NOBODY = bytes(USER_KEY_BYTES)
LIVE_RATIO_MAX = 0.6  # rewriting a segment that is 60 % live frees 40 % for 60 % copied


def collect(
    context: MaintenanceContext,
    grace_s: float,
    progress: Progress | None = None,
    pace: Callable[[float], None] | None = None,
) -> CollectReport:
    """Free everything unreachable, beside pushes in flight.

    Args:
        context: the store.
        grace_s: for how many seconds that the store was open what an interrupted push has claimed is kept.
        progress: called with (steps done, steps in all).
        pace: called with the seconds that each step took; may sleep, to leave room for others.
    """
    with context.collecting, context.pins.kept_during_collect():
        uploads = _kept_uploads(context, grace_s)
        steps = _Steps(progress, pace, context.catalog.counters().versions)
        marks, set_aside = _Marks(context.scratch), SetAside(context.stripes.volumes.report)
        try:
            _mark(context, marks, set_aside, steps)
            tally = _sweep(context, marks, set_aside, uploads, steps)
            _drop_dead_versions(context)
        finally:
            marks.close()
        _compact(context, tally)
        steps.finish()
        return CollectReport(len(tally.objects), tally.shards, tally.freed, tally.segments)


@dataclass(slots=True)
class _Tally:
    objects: _Distinct
    shards: int = 0
    freed: int = 0
    segments: int = 0


class _Distinct:
    """Counts distinct stripe keys that arrive in order within a bucket, without keeping earlier buckets."""

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

    def step(self) -> None:
        self._done += 1
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
    """Live keys by bucket: in memory while they are few, so that a full disk can be collected; then in files."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._directory: Path | None = None
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._bytes = 0

    def add(self, mark: bytes) -> None:
        """Keep a mark."""
        self._buckets[mark[0]] += mark
        self._bytes += len(mark)
        if self._bytes >= _MARKS_BYTES_MAX:
            self._spill()

    def _spill(self) -> None:
        try:
            if self._directory is None:
                self._scratch.mkdir(parents=True, exist_ok=True)
                self._directory = Path(tempfile.mkdtemp(prefix="collect-", dir=self._scratch))
            for bucket, marks in enumerate(self._buckets):
                with (self._directory / f"{bucket:02x}").open("ab") as stream:
                    stream.write(marks)
        except OSError as error:
            raise_if_full(error)
            raise
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._bytes = 0

    def take(self, bucket: int) -> set[bytes]:
        """The marks of a bucket, which are not kept any longer."""
        marks, self._buckets[bucket] = self._buckets[bucket], bytearray()
        if self._directory is not None:
            marks = bytearray((self._directory / f"{bucket:02x}").read_bytes()) + marks
        return {bytes(marks[at : at + _MARK_BYTES]) for at in range(0, len(marks), _MARK_BYTES)}

    def close(self) -> None:
        """Remove the files."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def _kept_uploads(context: MaintenanceContext, grace_s: float) -> KeptUploads:
    """Which uploads are honoured. Decided before the first version is read: one that ends later is among them."""
    uploads = context.uploads.kept(grace_s)
    try:
        context.uploads.keep()
    except StoreFull:
        log.warning("no space to note which uploads have lapsed; the next collect does")
    return uploads


def _mark(context: MaintenanceContext, marks: _Marks, set_aside: SetAside, steps: _Steps) -> None:
    users: dict[str, bytes] = {}
    catalog, copies, in_use = context.catalog, context.metadata_copies, context.readings
    for live in live_objects(catalog, context.load_node, copies, set_aside, steps.step, in_use):
        user = users.get(live.user_id)
        if user is None:
            users.clear()  # files come ordered by age, not by owner: keep just the last one
            user = users[live.user_id] = user_key(live.user_id.encode()) if live.user_id else _NOBODY
        marks.add(live.stripe + user)


def _sweep(
    context: MaintenanceContext, all_marks: _Marks, set_aside: SetAside, uploads: KeptUploads, steps: _Steps
) -> _Tally:
    tally = _Tally(_Distinct())
    for bucket in range(_BUCKETS):
        marks = all_marks.take(bucket)
        start, stop = bytes([bucket]), bytes([bucket + 1]) if bucket + 1 < _BUCKETS else None
        live = {StripeKey(mark[:STRIPE_KEY_BYTES]) for mark in marks}
        live |= _sweep_claims(context, marks, set_aside, uploads, start, stop)
        if not set_aside:  # one that cannot be read may need any of them
            _sweep_nodes(context, live, bucket)
        for slot, volume in context.stripes.volumes.online():
            with context.stripes.volumes.guard(slot, volume):
                _sweep_volume(context, volume, live, set_aside, start, stop, tally)
        tally.objects.next_bucket()
        steps.step()
    return tally


def _sweep_claims(
    context: MaintenanceContext,
    marks: set[bytes],
    set_aside: SetAside,
    uploads: KeptUploads,
    start: bytes,
    stop: bytes | None,
) -> set[StripeKey]:
    """Drop lapsed claims; the stripes of those that stay."""
    kept: set[StripeKey] = set()

    def lapsed() -> Iterator[Holding]:
        for holding in context.catalog.holdings(start, stop):
            marked = holding.stripe + holding.user in marks
            if marked or uploads.keep(holding.uploads) or set_aside.spares(holding.user):
                kept.add(holding.stripe)
            else:
                yield holding

    for batch in batched(lapsed(), _REMOVE_BATCH):
        # Pins are asked for inside the transaction: whoever pins later makes its own claim by a later one.
        kept.update(holding.stripe for holding in context.catalog.drop_holdings(batch, context.pins.pinned))
    return kept


def _sweep_nodes(context: MaintenanceContext, live: set[StripeKey], bucket: int) -> None:
    def stripe(node_id: bytes) -> StripeKey:
        return metadata_stripe(Kind.NODE, node_id, context.metadata_copies)

    stop = bytes([bucket + 1]) if bucket < _BUCKETS - 1 else None
    dead = [node_id for node_id in context.catalog.nodes(bytes([bucket]), stop) if stripe(node_id) not in live]
    context.catalog.drop_nodes(dead, lambda node_id: context.pins.pinned(stripe(node_id)))


def _sweep_volume(
    context: MaintenanceContext,
    volume: ShardStore,
    live: set[StripeKey],
    set_aside: SetAside,
    start: bytes,
    stop: bytes | None,
    tally: _Tally,
) -> None:
    dead = (key for key in volume.keys(start, stop) if key[:STRIPE_KEY_BYTES] not in live and not set_aside.needs(key))
    for batch in batched(dead, _REMOVE_BATCH):
        with context.pins.lock:
            free = [key for key in batch if not context.pins.held(StripeKey(key[:STRIPE_KEY_BYTES]))]
            context.pins.removals += len(free)
            tally.shards += volume.remove(free)
        for key in free:
            tally.objects.add(StripeKey(key[:STRIPE_KEY_BYTES]))


def _drop_dead_versions(context: MaintenanceContext) -> None:
    dead = (
        (kept.file_id, kept.version_id)
        for kept in context.catalog.versions()
        if kept.entry is None and not kept.problem and kept.file_id not in context.readings
    )
    for batch in batched(dead, _REMOVE_BATCH):
        context.catalog.drop_versions(batch, counted=True)


def _compact(context: MaintenanceContext, tally: _Tally) -> None:
    full: StoreFull | None = None
    # Segments without anything live first, on all volumes: that makes the room for moving the rest.
    for ratio in (0.0, LIVE_RATIO_MAX):
        for slot, volume in context.stripes.volumes.online():
            try:
                with context.stripes.volumes.guard(slot, volume):
                    segments, freed = volume.compact(ratio)
                    tally.segments += segments
                    tally.freed += freed
            except StoreFull as error:
                full = error
    if full is not None and not tally.freed:
        raise full

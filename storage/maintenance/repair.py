"""Repair: make missing and quarantined shards again from the ones that are left."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from storage.batching import batched
from storage.catalog import Catalog
from storage.errors import DataLossError
from storage.keys import ID_BYTES, Kind
from storage.limits import MIB
from storage.live import LiveObject, live_objects
from storage.maintenance.context import MaintenanceContext
from storage.manifest import object_id
from storage.reports import DAMAGE_LISTED_MAX, Damage, Progress, RepairReport

_SYNC_EVERY_BYTES = 64 * MIB
_IN_FLIGHT_MAX = 6
_PROGRESS_EVERY = 256
_SORTED_AT_ONCE = 65_536  # damaged objects held in memory to be put in order: some 30 MB


def repair(
    context: MaintenanceContext, progress: Progress | None = None, pace: Callable[[float], None] | None = None
) -> RepairReport:
    """Bring offline volumes back, then give every live object all its shards again.

    Can be interrupted and started again at any time: what was made stays.

    Args:
        context: the store.
        progress: called with (objects examined, objects expected).
        pace: called with the seconds that each object took; may sleep, to leave room for others.

    Raises:
        FormatError: a volume directory holds somebody else's volume.
        StoreFull: no space for the shards.
    """
    volumes = context.stripes.volumes
    volumes.reattach()
    attendance, online = volumes.attendance(), [slot for slot, _ in volumes.online()]
    total = context.catalog.counters().versions + context.catalog.claims()
    tally = _Tally()
    with context.runtime.executor(max(2, os.cpu_count() or 1), "repair") as pool:
        waiting: deque[tuple[list[LiveObject], Future[list[_Made]]]] = deque()
        together = context.stripes.together(MIB)
        for group in batched(_damaged(context, tally, progress, total), together):
            waiting.append((group, pool.submit(_make_at_pace, context, group, pace)))
            while len(waiting) >= _IN_FLIGHT_MAX:
                _settle(context, tally, *waiting.popleft())
                _tell(tally, progress, total)
        while waiting:
            _settle(context, tally, *waiting.popleft())
            _tell(tally, progress, total)
    volumes.sync()
    if progress is not None:
        progress(tally.examined, tally.examined)
    if not tally.lost_count and volumes.attendance() == attendance:
        volumes.incomplete.difference_update(online)
    return RepairReport(tally.examined, tally.shards, tally.bytes, tally.lost, tally.lost_count)


_Made = tuple[int, int] | DataLossError
"""(shards, bytes) made of an object, or why none could be."""


@dataclass(slots=True)
class _Tally:
    examined: int = 0
    waiting: int = 0  # found damaged, and not dealt with yet
    shards: int = 0
    bytes: int = 0
    unsynced: int = 0
    lost: list[Damage] = field(default_factory=list)
    lost_count: int = 0


def _damaged(context: MaintenanceContext, tally: _Tally, progress: Progress | None, total: int) -> Iterator[LiveObject]:
    """Objects that lack shards: of every so many, those with the fewest left first."""
    found: list[tuple[int, LiveObject]] = []
    for batch in batched(live_objects(context.catalog, context.load_node, context.metadata_copies), _PROGRESS_EVERY):
        absent = context.stripes.absent([live.stripe for live in batch])
        damaged = [(_spare(live, slots), live) for live, slots in zip(batch, absent, strict=True) if slots]
        found += damaged
        tally.examined += len(batch)
        tally.waiting += len(damaged)
        _tell(tally, progress, total)
        if len(found) >= _SORTED_AT_ONCE:
            yield from _most_urgent_first(found)
            found = []
    yield from _most_urgent_first(found)


def _spare(live: LiveObject, absent: list[int]) -> int:
    """How many more shards of an object may be lost."""
    k, n = live.stripe[ID_BYTES + 1] + 1, live.stripe[ID_BYTES + 2] + 1
    return n - len(absent) - k


def _most_urgent_first(found: list[tuple[int, LiveObject]]) -> Iterator[LiveObject]:
    return (live for _, live in sorted(found, key=lambda entry: entry[0]))


def _tell(tally: _Tally, progress: Progress | None, total: int) -> None:
    if progress is not None:
        progress(tally.examined - tally.waiting, max(total, tally.examined))


def _make_at_pace(
    context: MaintenanceContext, group: list[LiveObject], pace: Callable[[float], None] | None
) -> list[_Made]:
    """Make the absent shards of a few objects."""
    began_s = time.perf_counter()
    made = context.stripes.heal_all([live.stripe for live in group])
    made = [
        _make_from_catalog(context, live, one) if isinstance(one, DataLossError) else one
        for live, one in zip(group, made, strict=True)
    ]
    if pace is not None:
        pace(time.perf_counter() - began_s)
    return made


def _make_from_catalog(context: MaintenanceContext, live: LiveObject, error: DataLossError) -> _Made:
    raw = _from_catalog(context.catalog, live)
    if raw is None:
        return error
    absent = context.stripes.absent_slots(live.stripe)
    context.stripes.put(live.stripe, raw, len(raw), absent)
    return len(absent), len(absent) * len(raw)


def _from_catalog(catalog: Catalog, live: LiveObject) -> bytes | None:
    """A metadata object of which the volumes have nothing left; None if the catalog has not got it either."""
    identifier, kind = live.stripe[:ID_BYTES], live.stripe[ID_BYTES]
    if kind == Kind.VERSION:
        return catalog.version(live.file_id, identifier)
    if kind == Kind.NODE:
        return catalog.node(identifier)
    if kind == Kind.TOMBSTONE:
        return next((raw for _, raw in catalog.tombstones() if object_id(raw) == identifier), None)
    return None


def _settle(context: MaintenanceContext, tally: _Tally, group: list[LiveObject], future: Future[list[_Made]]) -> None:
    for live, made in zip(group, future.result(), strict=True):
        tally.waiting -= 1
        if isinstance(made, DataLossError):
            _note_lost(tally, live, made)
            continue
        tally.shards += made[0]
        tally.bytes += made[1]
        tally.unsynced += made[1]
    if tally.unsynced >= _SYNC_EVERY_BYTES:
        tally.unsynced = 0
        context.stripes.volumes.sync_each()


def _note_lost(tally: _Tally, live: LiveObject, error: DataLossError) -> None:
    tally.lost_count += 1
    if len(tally.lost) < DAMAGE_LISTED_MAX:
        named = DataLossError(
            error.chunk, error.found, error.needed, filename=live.filename, file_id=live.file_id.hex()
        )
        tally.lost.append(Damage(time.time_ns() // 1_000_000, "lost", error.chunk, -1, -1, str(named)))

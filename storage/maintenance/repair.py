"""Repair: make missing and quarantined shards again from the ones that are left."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
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


def repair(context: MaintenanceContext, progress: Progress | None = None) -> RepairReport:
    """Bring offline volumes back, then give every live object all its shards again.

    Can be interrupted and started again at any time: what was made stays.

    Args:
        context: the store.
        progress: called with (objects examined, objects expected).

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
        waiting: deque[tuple[LiveObject, Future[tuple[int, int]]]] = deque()
        for live in _damaged(context, tally, progress, total):
            waiting.append((live, pool.submit(_make, context, live)))
            while len(waiting) >= _IN_FLIGHT_MAX:
                _settle(context, tally, *waiting.popleft())
        while waiting:
            _settle(context, tally, *waiting.popleft())
    volumes.sync()
    if progress is not None:
        progress(tally.examined, tally.examined)
    if not tally.lost_count and volumes.attendance() == attendance:
        volumes.incomplete.difference_update(online)
    return RepairReport(tally.examined, tally.shards, tally.bytes, tally.lost, tally.lost_count)


@dataclass(slots=True)
class _Tally:
    examined: int = 0
    shards: int = 0
    bytes: int = 0
    unsynced: int = 0
    lost: list[Damage] = field(default_factory=list)
    lost_count: int = 0


def _damaged(context: MaintenanceContext, tally: _Tally, progress: Progress | None, total: int) -> Iterator[LiveObject]:
    for batch in batched(live_objects(context.catalog, context.load_node, context.metadata_copies), _PROGRESS_EVERY):
        tally.examined += len(batch)
        if progress is not None:
            progress(tally.examined, max(total, tally.examined))
        absent = context.stripes.absent([live.stripe for live in batch])
        yield from (live for live, slots in zip(batch, absent, strict=True) if slots)


def _make(context: MaintenanceContext, live: LiveObject) -> tuple[int, int]:
    """Make the absent shards of an object; (shards, bytes) appended."""
    try:
        return context.stripes.heal(live.stripe)
    except DataLossError:
        raw = _from_catalog(context.catalog, live)
        if raw is None:
            raise
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


def _settle(context: MaintenanceContext, tally: _Tally, live: LiveObject, future: Future[tuple[int, int]]) -> None:
    try:
        shards, size = future.result()
    except DataLossError as error:
        _note_lost(tally, live, error)
        return
    tally.shards += shards
    tally.bytes += size
    tally.unsynced += size
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

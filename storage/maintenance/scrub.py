"""Scrub: reads and verifies everything that is stored, and finds what is missing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from storage.batching import batched
from storage.catalog.ended import Ended
from storage.fleet.fleet import Fleet
from storage.keys import ShardKey, object_id_of, shard_key, slot_of
from storage.maintenance.context import MaintenanceContext
from storage.maintenance.live import LiveObject, is_live, live_objects
from storage.maintenance.set_aside import SetAside
from storage.progress import Progress
from storage.reports import DAMAGE_LISTED_MAX, Damage, ScrubReport
from storage.shards.port import Verdict, Verification

_BATCH = 512
_KINDS = {Verdict.ROTTEN: "rotten", Verdict.MISSING: "missing", Verdict.UNREADABLE: "unavailable"}
_SEEN_MAX = 200_000  # damaged shards remembered so that shared chunks are counted once


def scrub(context: MaintenanceContext, progress: Progress | None = None) -> ScrubReport:
    """Verify every stored byte, then that every live object has all its shards in good places.

    Sets corrupt shards, and those in bad sectors, aside (their bytes are kept but no longer read), so that repair
    rebuilds them. A volume that cannot be read at all now is left as it is.

    Args:
        context: the store.
        progress: called with (bytes verified, bytes stored).
    """
    volumes = context.stripes.volumes
    meter = _Meter(progress, _bytes_used(volumes))
    verified = _verify_volumes(context, meter)
    findings, set_aside = _Findings(context.runtime.wall_ms), SetAside(volumes.report, context.runtime.wall_ms)
    with context.walks.walking() as begun:
        ended = Ended(context.catalog, begun)
        walk = live_objects(context.catalog, context.versions, context.metadata_copies, set_aside, ended)
        for batch in batched(walk, _BATCH):
            _check_objects(context, batch, verified, findings)
    for slot, verification in verified.items():
        store = volumes.volume(slot)
        if store is None:
            continue
        with volumes.guard(slot, store):
            for key in verification.quarantine_rest():
                volumes.report("rotten", key, slot, "found by scrub, quarantined")
    damaged = [*set_aside.damage, *findings.damaged][:DAMAGE_LISTED_MAX]
    return ScrubReport(
        findings.checked,
        meter.done,
        findings.rotten,
        findings.missing,
        damaged,
        set_aside.count,
        findings.unavailable,
    )


class _Meter:
    """Adds up bytes read by several threads."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._lock = threading.Lock()
        self.done = 0

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count
            if self._progress is not None:
                self._progress(self.done, max(self._total, self.done))


def _verify_volumes(context: MaintenanceContext, meter: _Meter) -> dict[int, Verification]:
    """Verify every usable store, two at a time."""
    volumes = context.stripes.volumes
    found: dict[int, Verification] = {}
    with context.runtime.executor(2, "scrub") as pool:
        futures = [(slot, store, pool.submit(store.verify, meter.add)) for slot, store in volumes.online()]
        for slot, store, future in futures:
            with volumes.guard(slot, store):
                found[slot] = future.result()
    return found


def _bytes_used(volumes: Fleet[Any]) -> int:
    used = 0
    for slot, store in volumes.online():
        with volumes.guard(slot, store):
            used += store.usage().bytes_used
    return used


@dataclass(slots=True)
class _Findings:
    now_ms: Callable[[], int]
    checked: int = 0
    rotten: int = 0
    missing: int = 0
    unavailable: int = 0
    damaged: list[Damage] = field(default_factory=list)
    seen: set[ShardKey] = field(default_factory=set)

    def add(self, kind: str, key: ShardKey, holder: int, live: LiveObject) -> None:
        if key in self.seen:
            return
        if len(self.seen) < _SEEN_MAX:
            self.seen.add(key)
        self.rotten += kind == "rotten"
        self.missing += kind == "missing"
        self.unavailable += kind == "unavailable"
        if len(self.damaged) < DAMAGE_LISTED_MAX:
            name = f"{live.filename!r} of {live.user_id!r}" if live.file_id else "a deleted file"
            text = f"shard {slot_of(key)} of {object_id_of(key).hex()} on volume {holder} is {kind} ({name})"
            self.damaged.append(Damage(self.now_ms(), kind, object_id_of(key).hex(), slot_of(key), holder, text))


def _check_objects(
    context: MaintenanceContext, batch: list[LiveObject], verified: dict[int, Verification], findings: _Findings
) -> None:
    """Check that every shard of these objects exists and is intact, asking each store once."""
    volumes = context.stripes.volumes
    wanted: dict[int, list[tuple[ShardKey, LiveObject]]] = {}
    placed = context.stripes.shard_mapper.placed([live.stripe for live in batch])
    for live, stores in zip(batch, placed, strict=True):
        for slot, holder in enumerate(stores):
            wanted.setdefault(holder, []).append((shard_key(live.stripe, slot), live))
    for holder, shards in wanted.items():
        verdicts = _judged(volumes, holder, verified.get(holder), [key for key, _ in shards])
        for (key, live), verdict in zip(shards, verdicts, strict=True):
            if verdict is Verdict.GOOD:
                findings.checked += 1
                continue
            if verdict is Verdict.ROTTEN:
                volumes.report("rotten", key, holder, "found by scrub, quarantined")
            elif not is_live(context.catalog, live):
                continue  # deleted and collected since the walk found it
            findings.add(_KINDS[verdict], key, holder, live)


def _judged(volumes: Fleet[Any], holder: int, verification: Verification | None, keys: list[ShardKey]) -> list[Verdict]:
    store = volumes.volume(holder)
    if store is not None and verification is not None:
        with volumes.guard(holder, store):
            return verification.judge(keys)
    return [Verdict.MISSING if store is None else Verdict.UNREADABLE] * len(keys)

"""Scrub: reads and verifies everything that is stored, and finds what is missing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
_KINDS = {Verdict.ROTTEN: "rotten", Verdict.UNREADABLE: "unavailable"}
_SEEN_MAX = 200_000  # damaged shards remembered so that shared chunks are counted once
_LOOKS_MAX = 3  # how often to look for a shard that is not where it was looked for


def scrub(context: MaintenanceContext, progress: Progress | None = None) -> ScrubReport:
    """Verify every stored byte, then that every live object has all its shards.

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
        findings.misplaced,
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
    misplaced: int = 0
    damaged: list[Damage] = field(default_factory=list)
    seen: set[ShardKey] = field(default_factory=set)

    def add_misplaced(self, key: ShardKey) -> None:
        """Count a shard that is intact, but not in its place."""
        self.misplaced += self._is_new(key)

    def add(self, kind: str, key: ShardKey, holder: int, live: LiveObject) -> None:
        """Count and list a shard that is not intact, or not there."""
        if not self._is_new(key):
            return
        self.rotten += kind == "rotten"
        self.missing += kind == "missing"
        self.unavailable += kind == "unavailable"
        if len(self.damaged) < DAMAGE_LISTED_MAX:
            name = f"{live.filename!r} of {live.user_id!r}" if live.file_id else "a deleted file"
            text = f"shard {slot_of(key)} of {object_id_of(key).hex()} on volume {holder} is {kind} ({name})"
            self.damaged.append(Damage(self.now_ms(), kind, object_id_of(key).hex(), slot_of(key), holder, text))

    def _is_new(self, key: ShardKey) -> bool:
        if key in self.seen:
            return False
        if len(self.seen) < _SEEN_MAX:
            self.seen.add(key)
        return True


class _Wanted(NamedTuple):
    """A shard of a live object, and the store to look for it on."""

    key: ShardKey
    live: LiveObject
    holder: int


def _check_objects(
    context: MaintenanceContext, batch: list[LiveObject], verified: dict[int, Verification], findings: _Findings
) -> None:
    """Check that every shard of these objects exists and is intact."""
    placed = context.stripes.shard_mapper.placed([live.stripe for live in batch])
    wanted = [
        _Wanted(shard_key(live.stripe, slot), live, holder)
        for live, stores in zip(batch, placed, strict=True)
        for slot, holder in enumerate(stores)
    ]
    missing = _check_at(context, wanted, verified, findings, in_place=True)
    for _ in range(_LOOKS_MAX):  # repair may move a shard between two looks, so that neither place had it when asked
        if not missing:
            return
        in_place, elsewhere, missing = _looked_up(context, missing)
        missing += _check_at(context, in_place, verified, findings, in_place=True)
        missing += _check_at(context, elsewhere, verified, findings, in_place=False)
    for one in missing:
        if is_live(context.catalog, one.live):
            findings.add("missing", one.key, one.holder, one.live)


def _check_at(
    context: MaintenanceContext,
    wanted: Sequence[_Wanted],
    verified: dict[int, Verification],
    findings: _Findings,
    *,
    in_place: bool,
) -> list[_Wanted]:
    """Check shards at their holders, asking each once, and return those that these do not have."""
    volumes = context.stripes.volumes
    by_holder: dict[int, list[_Wanted]] = {}
    for one in wanted:
        by_holder.setdefault(one.holder, []).append(one)
    missing = []
    for holder, shards in by_holder.items():
        verdicts = _judged(volumes, holder, verified.get(holder), [one.key for one in shards])
        for one, verdict in zip(shards, verdicts, strict=True):
            if verdict is Verdict.MISSING:
                missing.append(one)
            elif verdict is Verdict.GOOD:
                findings.checked += 1
                if not in_place:
                    findings.add_misplaced(one.key)
            else:
                if verdict is Verdict.ROTTEN:
                    volumes.report("rotten", one.key, holder, "found by scrub, quarantined")
                elif not is_live(context.catalog, one.live):
                    continue  # deleted and collected since the walk found it
                findings.add(_KINDS[verdict], one.key, holder, one.live)
    return missing


def _looked_up(
    context: MaintenanceContext, missing: Sequence[_Wanted]
) -> tuple[list[_Wanted], list[_Wanted], list[_Wanted]]:
    """Look for shards on all stores.

    Returns:
        Those that are in their place by now, those that another store has, and those that none has.
    """
    in_place: list[_Wanted] = []
    elsewhere: list[_Wanted] = []
    nowhere: list[_Wanted] = []
    stripes = list({one.live.stripe: None for one in missing})
    mapper = context.stripes.shard_mapper
    placed = dict(zip(stripes, mapper.placed(stripes), strict=True))
    maps = {stripes[index]: found for index, found in mapper.shard_maps(stripes, also_slow=True).items()}
    for one in missing:
        slot, found = slot_of(one.key), maps.get(one.live.stripe)
        home = placed[one.live.stripe][slot]
        if found is None or slot not in found.absent:
            in_place.append(_Wanted(one.key, one.live, home))
        elif (holder := found.holders[slot]) is not None:
            elsewhere.append(_Wanted(one.key, one.live, holder))
        else:
            nowhere.append(_Wanted(one.key, one.live, home))
    return in_place, elsewhere, nowhere


def _judged(volumes: Fleet[Any], holder: int, verification: Verification | None, keys: list[ShardKey]) -> list[Verdict]:
    store = volumes.volume(holder)
    if store is not None and verification is not None:
        with volumes.guard(holder, store):
            return verification.judge(keys)
    return [Verdict.MISSING if store is None else Verdict.UNREADABLE] * len(keys)

"""Scrub: read and verify everything that is stored, and see that nothing is missing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from storage.keys import ShardKey, shard_key
from storage.live import LiveObject, live_objects
from storage.maintenance.batching import batched
from storage.maintenance.context import MaintenanceContext
from storage.reports import DAMAGE_LISTED_MAX, Damage, Progress, ScrubReport
from storage.shards import LocalVolume, Location
from storage.shards.port import DamagedRanges
from storage.shards.record import HEADER_BYTES
from storage.volumes import VolumeSet

_BATCH = 4096
_SEEN_MAX = 200_000  # damaged shards remembered so that shared chunks are counted once


def scrub(context: MaintenanceContext, progress: Progress | None = None) -> ScrubReport:
    """Verify every stored byte, then that every live object has all its shards in good places.

    Rotten shards are quarantined (never read again), so that repair makes them anew.

    Args:
        context: the store.
        progress: called with (bytes verified, bytes stored).
    """
    volumes = context.stripes.volumes
    meter = _Meter(progress, _bytes_used(volumes))
    bad = _verify_volumes(volumes, meter)
    findings = _Findings()
    for live in live_objects(context.catalog, context.load_node, context.metadata_copies):
        _check_object(volumes, live, bad, findings)
    _quarantine_unreachable(volumes, bad)
    return ScrubReport(findings.checked, meter.done, findings.rotten, findings.missing, findings.damaged)


class _Meter:
    """Adds up bytes from several threads."""

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


def _verify_volumes(volumes: VolumeSet, meter: _Meter) -> dict[int, DamagedRanges]:
    """Bad byte ranges of each usable volume, two volumes read at a time."""
    found: dict[int, DamagedRanges] = {}
    with ThreadPoolExecutor(2, thread_name_prefix="scrub") as pool:
        futures = [(volume, pool.submit(volume.damaged_ranges, meter.add)) for volume in volumes.online()]
        for volume, future in futures:
            with volumes.guard(volume):
                found[volume.identity.slot] = future.result()
    return found


def _bytes_used(volumes: VolumeSet) -> int:
    used = 0
    for volume in volumes.online():
        with volumes.guard(volume):
            used += volume.usage().bytes_used
    return used


@dataclass(slots=True)
class _Findings:
    checked: int = 0
    rotten: int = 0
    missing: int = 0
    damaged: list[Damage] = field(default_factory=list)
    seen: set[ShardKey] = field(default_factory=set)

    def add(self, kind: str, key: ShardKey, holder: int, live: LiveObject) -> None:
        if key in self.seen:
            return
        if len(self.seen) < _SEEN_MAX:
            self.seen.add(key)
        self.rotten += kind == "rotten"
        self.missing += kind == "missing"
        if len(self.damaged) < DAMAGE_LISTED_MAX:
            name = f"{live.filename!r} of {live.user_id!r}" if live.file_id else "a deleted file"
            text = f"shard {key[35]} of {key[:32].hex()} on volume {holder} is {kind} ({name})"
            now = time.time_ns() // 1_000_000
            self.damaged.append(Damage(now, kind, key[:32].hex(), key[35], holder, text))


def _check_object(volumes: VolumeSet, live: LiveObject, bad: dict[int, DamagedRanges], findings: _Findings) -> None:
    for slot, holder in enumerate(volumes.holders(live.stripe)):
        key = shard_key(live.stripe, slot)
        volume = volumes.volume(holder)
        verdict = "missing"
        if volume is not None:
            with volumes.guard(volume):
                verdict = _verdict(volume, key, bad.get(holder))
        if verdict == "good":
            findings.checked += 1
            continue
        if verdict == "rotten":
            volumes.report("rotten", key, holder, "found by scrub, quarantined")
        findings.add(verdict, key, holder, live)


def _verdict(volume: LocalVolume, key: ShardKey, bad: DamagedRanges | None) -> str:
    """``"good"``, ``"missing"``, or ``"rotten"`` and quarantined."""
    location = volume.locate(key)
    while location is not None and not _good_place(volume, key, location, bad):
        again = volume.locate(key)
        if again == location and volume.discard(key, location):
            return "rotten"
        location = again  # a collect moved it meanwhile
    return "missing" if location is None else "good"


def _quarantine_unreachable(volumes: VolumeSet, bad: dict[int, DamagedRanges]) -> None:
    """Forget rotten shards that no live object has, too: a push of the same content would count on them."""
    for slot, ranges in bad.items():
        volume = volumes.volume(slot)
        if not ranges or volume is None:
            continue
        with volumes.guard(volume):
            for batch in batched(volume.keys(), _BATCH):
                for key in batch:
                    place = volume.locate(key)
                    if place is not None and not _good_place(volume, key, place, ranges):
                        volume.discard(key, place)


def _good_place(volume: LocalVolume, key: ShardKey, location: Location, bad: DamagedRanges | None) -> bool:
    stop = location.offset + HEADER_BYTES + location.payload_length
    if not volume.covers(location.segment, stop) or not volume.holds(key, location):
        return False
    return bad is None or not bad.hits(location.segment, location.offset, stop)

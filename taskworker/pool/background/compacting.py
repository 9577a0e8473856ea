"""Compacts workers' volumes on disks that are nearly full."""

from __future__ import annotations

import logging

from storage.errors import StoreFull
from storage.maintenance.collect import LIVE_RATIO_MAX
from taskworker.transport.worker_fleet import WorkerFleet

log = logging.getLogger(__name__)

_PRESSING = 5  # a disk is nearly full if less than one part in this many is free
_DEAD = 10  # a volume is compacted if at least one part in this many is dead


def compact_full(fleet: WorkerFleet) -> None:
    """Compact volumes in which dead records take much space, if their disks are nearly full."""
    for slot, volume in fleet.online():
        if not fleet.trusts(slot):
            continue
        with fleet.guard(slot, volume):
            usage = volume.usage()
            dead = usage.bytes_used - usage.bytes_live
            presses = _PRESSING * usage.bytes_free < usage.bytes_used + usage.bytes_free
            if presses and _DEAD * dead >= usage.bytes_used > 0:
                try:
                    _, freed = volume.compact(LIVE_RATIO_MAX)
                except StoreFull as error:
                    log.warning("worker %s has too little space even for compacting: %s", fleet.name(slot), error)
                else:
                    log.info("compacted worker %s: %.1f MB freed", fleet.name(slot), freed / 1e6)

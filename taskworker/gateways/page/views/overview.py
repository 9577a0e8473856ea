"""How the pool is: health, what may be lost, workers, space, background work, events."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from storage.errors import StorageError
from taskworker.auth.rights import Right
from taskworker.client.functions import FunctionStatus
from taskworker.client.pool import PoolStatus
from taskworker.gateways.page.charts import charts_of
from taskworker.gateways.page.viewing import Asked, View
from taskworker.readable import duration_text, plural, size_text
from taskworker.reports import WorkStatus

_EVENTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that may be lost together: those of a zone, or of an owner."""

    name: str
    workers: int
    alive: int
    used: int
    free: int


def load(asked: Asked) -> dict[str, Any]:
    """What the overview shows."""
    status = asked.acting.pool().status()
    if status is None:
        return {"status": None, "stats": asked.acting.files().stats()}
    asked.history.note(status, _functions(asked))
    workers = sorted(status.workers, key=lambda one: one.worker_id)
    return {
        "status": status,
        "stats": None,
        "level": _level(status),
        "survivals": _survivals(status),
        "workers": workers,
        "zones": _groups([(one.zone, one.state == "alive", one.bytes_used, one.bytes_free) for one in workers]),
        "owners": _groups([(one.owner, one.state == "alive", one.bytes_used, one.bytes_free) for one in workers]),
        "used": sum(one.bytes_used for one in workers),
        "free": sum(one.bytes_free for one in workers),
        "alive": sum(one.state == "alive" for one in workers),
        "work": [(one, work_text(one)) for one in status.work],
        "events": list(reversed(status.events[-_EVENTS_SHOWN:])),
        "charts": charts_of(asked.history.samples()),
    }


def _functions(asked: Asked) -> list[FunctionStatus] | None:
    try:
        return asked.acting.functions().functions()
    except StorageError:  # whoever may see the pool need not see all functions
        return None


def _level(status: PoolStatus) -> str:
    """How urgent a pool's health is, in one word for the style sheet; the line itself says it in full."""
    if status.workers_survivable < 0 or not status.workers:
        return "bad"
    promised = status.workers_survivable > 0 and status.health.startswith("all files survive")
    return "good" if promised and ";" not in status.health else "warning"


def _survivals(status: PoolStatus) -> list[tuple[str, int, int]]:
    """For each thing of which some may be lost at once: what it is, how many may be, and how many there are."""
    kinds = [("worker", status.workers_survivable, len(status.workers))]
    zones, owners = ({getattr(one, of) for one in status.workers} for of in ("zone", "owner"))
    if len(zones) > 1:
        kinds.append(("zone", status.zones_survivable, len(zones)))
    if len(owners) > 1:
        kinds.append(("owner", status.owners_survivable, len(owners)))
    return kinds


def _groups(workers: list[tuple[str, bool, int, int]]) -> list[Group]:
    names = Counter(name for name, *_ in workers)
    if set(names) <= {""}:
        return []
    return [
        Group(
            name,
            count,
            sum(alive for one, alive, _, _ in workers if one == name),
            sum(used for one, _, used, _ in workers if one == name),
            sum(free for one, _, _, free in workers if one == name),
        )
        for name, count in sorted(names.items())
    ]


def work_text(work: WorkStatus) -> str:
    """How far background work is."""
    parts = []
    if work.total and work.state in ("running", "waiting"):
        if work.unit == "bytes":
            parts.append(f"{size_text(work.done)} of {size_text(work.total)}")
        else:
            parts.append(f"{work.done:,} of {work.total:,} {work.unit}")
    if work.bytes_per_s:
        parts.append(f"{size_text(int(work.bytes_per_s))}/s")
    if work.queue:
        parts.append(f"{work.queue:,} wait")
    if work.seconds_left is not None and work.state == "running":
        parts.append(f"{duration_text(work.seconds_left)} left")
    if work.note:
        parts.append(work.note)
    if work.errors:
        parts.append(f"failed {plural(work.errors, 'time')} in a row: {work.error}")
    return ", ".join(parts)


VIEWS = (
    View(
        "/",
        "Overview",
        "overview.html",
        ("health", "figures", "workers", "charts", "work", "events"),
        load,
        "overview",
        Right.AUDIT,
    ),
)

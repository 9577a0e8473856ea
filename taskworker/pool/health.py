"""The health of a pool in one readable line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taskworker.pool.background.repair_scheduling import Endangered
from taskworker.reports import WorkStatus

_DOING = {"repair": "repairing", "rebalance": "moving shards"}


@dataclass(frozen=True, slots=True)
class Risk:
    """The risk to the versions that have the same erasure profile.

    Attributes:
        profile: the profile, k-of-n.
        files: number of files whose heads have it.
        versions: number of versions with it, including those of deleted files that were not collected yet.
        survivable: how many more workers, whichever, may be lost with all versions readable; negative: some are
            unreadable now.
        promised: how many that will be after repair.
    """

    profile: str
    files: int
    versions: int
    survivable: int
    promised: int

    @property
    def label(self) -> str:
        """A name for these versions."""
        if self.files:
            return f"{self.files:,} file{'s' if self.files > 1 else ''} ({self.profile})"
        return f"{self.versions:,} earlier or deleted version{'s' if self.versions > 1 else ''} ({self.profile})"


@dataclass(frozen=True, slots=True)
class Safety:
    """How many losses the files of a pool survive.

    Attributes:
        survivable: how many more workers, whichever, may be lost with all files certainly readable; None before the
            first worker joined.
        promised: how many that will be after repair.
        files: number of files.
        endangered: the files that survive fewer losses, if they are known.
        risks: the same by erasure profile, if not all files have the same one.
        fatal: kinds of failure domain besides workers, such as zones, where one loss may make files unreadable.
        full: workers that have no space left.
        read_only: workers whose disks take no writes.
        refusing: workers that temporarily cannot write.
    """

    survivable: int | None
    promised: int
    files: int
    endangered: Endangered | None
    risks: Sequence[Risk] = ()
    fatal: Sequence[str] = ()
    full: Sequence[str] = ()
    read_only: Sequence[str] = ()
    refusing: Sequence[str] = ()

    def few(self) -> dict[int, int]:
        """Numbers of endangered files, by how many losses they survive; empty unless only some files are endangered."""
        if self.endangered is None or not self.endangered.all_known or len(self.risks) > 1:
            return {}
        less = {spare: files for spare, files in sorted(self.endangered.files.items()) if spare < self.promised}
        return less if sum(less.values()) < self.files else {}


def losses_in_words(count: int, what: str) -> str:
    """``count`` further losses in words."""
    if count < 0:
        return f"some files cannot be read until a {what} comes back"
    if count == 0:
        return f"all files can be read, but the loss of one more {what} could make some unreadable"
    return f"all files survive the loss of any {count} {what}{'s' if count > 1 else ''}"


BEHIND_LINE = "the catalog is older than what the workers hold, so files can only be read"


def rebuild_line(workers: int) -> str:
    """The line that says how to rebuild a lost catalog, given the number of workers that are back."""
    there = f"{workers} worker{' has' if workers == 1 else 's have'} joined"
    return f"the catalog is lost; {there}: run `taskworker rebuild` once all of them are back"


def health_line(safety: Safety, offline: int, work: Sequence[WorkStatus]) -> str:
    """One sentence on which losses the files survive, and what is being done about it.

    Args:
        safety: the safety of the files.
        offline: how many workers are away.
        work: the status of repair and rebalance.
    """
    if safety.survivable is None:
        return "no worker has joined yet; start some with `taskworker worker`"
    parts = [_losses(safety, safety.survivable)]
    parts += [f"the loss of one {domain} could make some files unreadable" for domain in safety.fatal]
    if safety.full:
        parts.append(f"no space on {', '.join(safety.full)}: delete files and collect, or add workers")
    if safety.read_only:
        parts.append(f"no writes to {', '.join(safety.read_only)}: the disk is read-only, see that worker's log")
    if safety.refusing:
        parts.append(f"no writes to {', '.join(safety.refusing)} for now, see that worker's log")
    if offline:
        parts.append(f"{offline} worker{'s are' if offline > 1 else ' is'} away")
    matters = safety.survivable < safety.promised  # rather than a look at a new pool or layout
    for piece in work:
        if piece.state == "running":
            share = f", {100 * piece.done // piece.total} % done" if piece.total else ""
            left = f", {_duration(piece.seconds_left)} left" if piece.seconds_left is not None else ""
            parts.append(f"{_DOING[piece.name]}{share}{left}")
            break
        if piece.state in ("failed", "waiting") and piece.error:
            parts.append(f"{piece.name} waits: {piece.error}")
        elif piece.name == "repair" and piece.state == "waiting" and (piece.queue or matters):
            parts.append(f"repair {piece.note}")
    return "; ".join(parts)


def _losses(safety: Safety, survivable: int) -> str:
    few = safety.few()
    if few:
        return _few_in_words(few, safety)
    best = max((risk.survivable for risk in safety.risks), default=survivable)
    worse = sorted((risk for risk in safety.risks if risk.survivable < best), key=lambda risk: risk.survivable)
    if not worse:
        return losses_in_words(survivable, "worker")
    parts = [f"{risk.label} {_bears(risk.survivable, risk.files or risk.versions)}" for risk in worse]
    return f"{', '.join(parts)}; the others {_bears(best, 2)}"


def _few_in_words(few: dict[int, int], safety: Safety) -> str:
    parts = [f"{files:,} of {safety.files:,} files {_bears(spare, files)}" for spare, files in few.items()]
    return f"{', '.join(parts)}; the others {_bears(safety.promised, 2)}"


def _bears(spare: int, files: int) -> str:
    """How many losses these files survive, in words."""
    s = "s" if files == 1 else ""
    if spare < 0:
        return "cannot be read until a worker comes back"
    if spare == 0:
        return "can be read, but might not after one more loss"
    return f"survive{s} one more loss" if spare == 1 else f"survive{s} {spare} more losses"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"

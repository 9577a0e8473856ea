"""The state of a pool in one line that a person understands."""

from __future__ import annotations

from storage.erasure import ErasureProfile
from storage.layout import Layout, Member
from taskworker.pool.mending import WorkView


def losses_in_words(count: int, what: str) -> str:
    """What ``count`` further losses mean."""
    if count < 0:
        return f"some files cannot be read until a {what} comes back"
    if count == 0:
        return f"all files can be read, but the loss of one more {what} could make some unreadable"
    return f"all files survive the loss of any {count} {what}{'s' if count > 1 else ''}"


def health_line(
    layout: Layout | None, profile: ErasureProfile, lacking: list[int], offline: int, work: WorkView
) -> str:
    """One sentence: what may be lost, and what is being done about it.

    Args:
        layout: the current one; None before the first worker joined.
        profile: the pool's default profile.
        lacking: member slots that are away, or may lack shards.
        offline: how many workers are away.
        work: what the mender is at.
    """
    if layout is None:
        return "no worker has joined yet; start some with `taskworker worker`"
    survivable = layout.losses_survivable(profile.k, _worker, lacking)
    parts = [losses_in_words(survivable, "worker")]
    if offline:
        parts.append(f"{offline} worker{'s are' if offline > 1 else ' is'} away")
    if work.state == "running":
        share = f", {100 * work.done // work.total} % done" if work.total else ""
        left = f", {_duration(work.seconds_left)} left" if work.seconds_left >= 0 else ""
        parts.append(f"repairing{share}{left}")
    elif work.state in ("failed", "waiting"):
        parts.append(f"repair waits: {work.note}")
    return "; ".join(parts)


def _worker(member: Member) -> str:
    return member.worker


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"

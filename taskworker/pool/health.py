"""The state of a pool in one line that a person understands."""

from __future__ import annotations

from taskworker.pool.mending import WorkView


def losses_in_words(count: int, what: str) -> str:
    """What ``count`` further losses mean."""
    if count < 0:
        return f"some files cannot be read until a {what} comes back"
    if count == 0:
        return f"all files can be read, but the loss of one more {what} could make some unreadable"
    return f"all files survive the loss of any {count} {what}{'s' if count > 1 else ''}"


def health_line(survivable: int | None, offline: int, work: WorkView) -> str:
    """One sentence: what may be lost, and what is being done about it.

    Args:
        survivable: how many more workers may be lost; None before the first one joined.
        offline: how many workers are away.
        work: what the mender is at.
    """
    if survivable is None:
        return "no worker has joined yet; start some with `taskworker worker`"
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"

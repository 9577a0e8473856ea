"""Counts what is repeated, so that whoever is refused again and again cannot fill the trail."""

from __future__ import annotations

from collections import Counter

from taskworker.audit.records import Entry

WINDOW_S = 300.0
"""What is repeated within this time becomes one record with a count."""
_KNOWN_MAX = 256
_UNKNOWN_MAX = 64
_MANY = "many"


class Repeats:
    """What happened within the current window. Not thread-safe.

    Callers that are known and callers that are not have separate bounds: nobody without a token can keep the refusals
    of those who have one from being recorded by themselves. Of the former, each may have as many kinds as are free, so
    that nobody can keep those of others from it, either; of more, it is only recorded whose they are.
    """

    def __init__(self) -> None:
        self._since_s = 0.0
        self._counts: dict[Entry, int] = {}
        self._unknown = 0
        self._of: Counter[str] = Counter()  # kinds of each known caller

    def note(self, entry: Entry, now_s: float) -> Entry | None:
        """Count an entry; return it, without what changes from one to the next, if it is the first of its kind."""
        kept = self._kind_of(entry)
        if kept in self._counts:
            self._counts[kept] += 1
            return None
        if not self._counts:
            self._since_s = now_s
        self._counts[kept] = 0
        self._unknown += not kept.who
        self._of[kept.who] += 1
        return kept

    def _kind_of(self, entry: Entry) -> Entry:
        kind = entry._replace(peer=_host_of(entry.peer))
        if not entry.who:
            kind = kind._replace(on="")
        if kind in self._counts:
            return kind
        if not entry.who and self._unknown >= _UNKNOWN_MAX:
            return kind._replace(call=_MANY, peer=_MANY)
        free = _KNOWN_MAX - (len(self._counts) - self._unknown)
        if entry.who and self._of[entry.who] >= free:
            theirs = kind._replace(token="", call=_MANY, on="", peer=_MANY)
            return theirs if free > 0 or theirs in self._counts else theirs._replace(who=_MANY)
        return kind

    def due_s(self, now_s: float) -> float | None:
        """In how many seconds the window ends; None: nothing was counted."""
        return max(0.0, self._since_s + WINDOW_S - now_s) if self._counts else None

    def take(self) -> list[tuple[Entry, int]]:
        """End the window; return what was repeated, and how often, not counting the first."""
        found = [(entry, count) for entry, count in self._counts.items() if count]
        self._counts, self._unknown = {}, 0
        self._of.clear()
        return found


def _host_of(peer: str) -> str:
    """A peer as gRPC names it, without its port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer

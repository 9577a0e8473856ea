"""Where shards have been put since every shard of a pool was last in its place."""

from __future__ import annotations

from collections import deque

from taskworker.transport.targets import Targets

_KEPT = 32  # that many comings and goings between two moments when all was mended


class TargetHistory:
    """The targets of the moment, and those before. Not thread-safe; the fleet's lock guards it.

    Attributes:
        latest: by which shards are put now; None before the first worker joined.
        mended_at: the fleet's mark when all was last in its place; None: that is not known.
        mended: by which all was in its place when that was last so; None: not known any more.
        emptied: members that came with an empty volume since.
        stood_in_for: members that refused writes at some time since: others have what they should.
    """

    def __init__(self) -> None:
        self.latest: Targets | None = None
        self.mended_at: tuple[int, ...] | None = None
        self.mended: Targets | None = None
        self.emptied: frozenset[int] = frozenset()
        self.stood_in_for: frozenset[int] = frozenset()
        self._since: deque[Targets] = deque()

    def note(self, targets: Targets) -> None:
        """Shards are put by these from now on."""
        if targets.is_like(self.latest):
            return
        known = next((one for one in self._since if targets.is_like(one)), None)
        if known is not None:  # who went has come back: nothing is put anywhere else than before
            self._since.remove(known)
        self.latest = known or targets
        self._since.append(self.latest)
        if len(self._since) > _KEPT:
            # What was put by the oldest is not known any more: only what is in its place counts until all is mended.
            self._since.popleft()
            self.mended = None

    def note_emptied(self, slot: int) -> None:
        """A member came with an empty volume."""
        self.emptied |= {slot}

    def note_refused(self, slot: int) -> None:
        """A member refused a write: others stand in for it."""
        self.stood_in_for |= {slot}

    def note_mended(self, mark: tuple[int, ...], full: frozenset[int]) -> None:
        """Every shard was where it should be put at a mark, but for what others hold for these ``full`` members."""
        self.mended_at = mark
        self.mended = self.latest
        self.emptied = frozenset()
        self.stood_in_for = full
        self._since.clear()

    def forget(self, slot: int) -> None:
        """There is no such member any more."""
        self.stood_in_for -= {slot}

    def all(self) -> tuple[Targets, ...]:
        """By which shards were put: when all was last in its place, if that is known, and since."""
        return (*(() if self.mended is None else (self.mended,)), *self._since)

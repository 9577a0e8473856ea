"""Where shards have been written since all shards of a pool were last in their places."""

from __future__ import annotations

from collections import deque

from taskworker.transport.targets import Targets

_KEPT = 32  # targets remembered between two complete mends, and of those in use during a push


class TargetHistory:
    """The current targets, and the earlier ones. Not thread-safe; the fleet's lock guards it.

    Attributes:
        latest: where shards are written now; None before the first worker joined.
        mended_at: the fleet's mark at the last complete mend; None: unknown.
        mended: the targets at the last complete mend; None: no longer known.
        emptied: members that came with an empty volume since.
        stood_in_for: members that refused writes, were slow or distrusted since, so that others have shards of theirs.
    """

    def __init__(self) -> None:
        self.latest: Targets | None = None
        self.mended_at: tuple[int, ...] | None = None
        self.mended: Targets | None = None
        self.emptied: frozenset[int] = frozenset()
        self.stood_in_for: frozenset[int] = frozenset()
        self._since: deque[Targets] = deque()
        self._used: deque[tuple[int, Targets]] = deque(maxlen=_KEPT)  # the latest, each with its first epoch

    def note(self, targets: Targets, epoch: int) -> None:
        """Note that shards are written by these targets from now on, which is the fleet's ``epoch``."""
        self.stood_in_for |= targets.avoided
        if targets.is_like(self.latest):
            return
        self.latest = self._add(targets)
        self._used.append((epoch, self.latest))

    def _add(self, targets: Targets) -> Targets:
        known = next((one for one in self._since if targets.is_like(one)), None)
        if known is not None:  # a worker that went has come back: the same targets as before
            self._since.remove(known)
        self._since.append(known or targets)
        if len(self._since) > _KEPT:
            # The oldest targets are forgotten, so until the next complete mend, only shards in their places count.
            self._since.popleft()
            self.mended = None
        return known or targets

    def note_used_since(self, epoch: int) -> None:
        """Note that shards are where any targets since this epoch put them, even if all was mended meanwhile."""
        before = [targets for first, targets in self._used if first <= epoch]
        used = [*before[-1:], *(targets for first, targets in self._used if first > epoch)]
        for targets in used:
            self.stood_in_for |= targets.avoided
            self._add(targets)
        if not before and self.latest is not None:  # the first of these targets are forgotten
            self.stood_in_for |= self.latest.layout.by_slot.keys()
            self.mended = None

    def note_emptied(self, slot: int) -> None:
        """Note that a member came with an empty volume."""
        self.emptied |= {slot}

    def note_refused(self, slot: int) -> None:
        """Note that a member refused a write, so that others stand in for it."""
        self.stood_in_for |= {slot}

    def note_mended(self, mark: tuple[int, ...], full: frozenset[int]) -> None:
        """Note that at a mark, every shard was in its place.

        Others still hold those of ``full`` members, and of those that are avoided now.
        """
        self.mended_at = mark
        self.mended = self.latest
        self.emptied = frozenset()
        self.stood_in_for = full if self.latest is None else full | self.latest.avoided
        self._since.clear()

    def forget(self, slot: int) -> None:
        """Forget a member."""
        self.stood_in_for -= {slot}

    def all(self) -> tuple[Targets, ...]:
        """The targets at the last complete mend, if known, and all targets since."""
        return (*(() if self.mended is None else (self.mended,)), *self._since)

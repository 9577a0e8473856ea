"""Where the shards of each stripe are put, may stay, and may be besides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from storage.errors import InsufficientWorkers
from storage.fleet.layout import Layout
from storage.fleet.placement import partition_of
from storage.keys import StripeKey, data_shards, shard_count
from taskworker.transport.targets import Targets

_Row = tuple[int, ...]


class Places:
    """Answers for one moment: made anew whenever a worker comes, goes, or can be counted on no more. Thread-safe.

    All stripes of a partition that are coded alike have the same answers, which are remembered.

    Args:
        layouts: the current one and former ones, the newest first; none before the first worker joined.
        targets: by which shards are put; None before the first worker joined.
        undurable: full members that could not make durable what they had taken.
        there: slots of all members that are online, with a part in a layout or without.
    """

    def __init__(
        self,
        layouts: Sequence[Layout] = (),
        targets: Targets | None = None,
        undurable: frozenset[int] = frozenset(),
        there: Iterable[int] = (),
    ) -> None:
        self._layouts = layouts
        self._latest = targets
        self._undurable = undurable
        self._there = dict.fromkeys(there)
        self._targets: dict[tuple[int, bytes], _Row] = {}
        self._places: dict[tuple[int, bytes, bool], _Row] = {}
        self._elsewhere: dict[tuple[int, int], _Row] = {}

    @property
    def layout(self) -> Layout:
        """The current layout.

        Raises:
            InsufficientWorkers: there is none yet.
        """
        if not self._layouts:
            raise InsufficientWorkers("no worker has joined this pool yet; start some with `taskworker worker`")
        return self._layouts[0]

    def targets(self, stripe: StripeKey) -> _Row:
        """Where to put each shard."""
        key = partition_of(stripe), stripe[33:35]
        found = self._targets.get(key)
        if found is None:
            k, n = data_shards(stripe), shard_count(stripe)
            put = self._holders(stripe) if self._latest is None else self._latest.row(key[0], k, n)
            found = self._targets[key] = put
        return found

    @property
    def differ(self) -> bool:
        """Whether any member keeps what it holds although others are given what is new for it."""
        return self._latest is not None and bool(self._latest.keeping)

    def kept(self, stripe: StripeKey, targets: _Row, *, strict: bool) -> _Row:
        """Where each shard may stay: on its holder, if that one is full, or else on its target.

        Args:
            stripe: whose shards.
            targets: of the stripe.
            strict: count on no member that might lose what it has.
        """
        assert self._latest is not None
        key = partition_of(stripe), stripe[33:35], strict
        found = self._places.get(key)
        if found is None:
            keeping = self._latest.keeping - self._undurable if strict else self._latest.keeping
            both = zip(self._holders(stripe), targets, strict=True)
            row = tuple(holder if holder in keeping else target for holder, target in both)
            found = self._places[key] = targets if row == targets else row
        return found

    def elsewhere(self, stripe: StripeKey) -> _Row:
        """Members that may hold shards besides: by former layouts, others in handoff order, then whoever is there.

        A worker that was lost or drained has no part in any layout any more, but may hold what is needed.
        """
        key = partition_of(stripe), shard_count(stripe)
        found = self._elsewhere.get(key)
        if found is None:
            found = self._elsewhere[key] = self._find_elsewhere(stripe)
        return found

    def _find_elsewhere(self, stripe: StripeKey) -> _Row:
        seen: dict[int, None] = {}
        for layout in self._layouts[1:]:
            seen.update(dict.fromkeys(layout.volumes(stripe, shard_count(stripe))))
        seen.update(dict.fromkeys(self.layout.order(partition_of(stripe))))
        seen.update(self._there)
        return tuple(slot for slot in seen if slot in self._there)

    def _holders(self, stripe: StripeKey) -> _Row:
        return self.layout.volumes(stripe, shard_count(stripe))

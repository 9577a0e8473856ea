"""Where the shards of each stripe are written, where they may stay, and where else they may be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from storage.errors import InsufficientWorkers
from storage.fleet.layout import Layout
from storage.fleet.placement import partition_of
from storage.keys import StripeKey, data_shards, shard_count
from taskworker.transport.targets import Targets

_Row = tuple[int, ...]


class Places:
    """The places of shards at one moment; replaced when a worker comes, goes, or changes its state. Thread-safe.

    All stripes of a partition with the same k and n have the same places, which are remembered.

    Args:
        layouts: the current layout, then former ones, newest first; none before the first worker joined.
        targets: where shards are written; None before the first worker joined.
        undurable: full members that could not make durable what they had taken.
        there: slots of all members that are online, whether or not they are in a layout.
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
        """The slot to write each shard to."""
        key = partition_of(stripe), stripe[33:35]
        found = self._targets.get(key)
        if found is None:
            k, n = data_shards(stripe), shard_count(stripe)
            put = self._holders(stripe) if self._latest is None else self._latest.row(key[0], k, n)
            found = self._targets[key] = put
        return found

    @property
    def differ(self) -> bool:
        """Whether any full member keeps its shards while others take new ones in its place."""
        return self._latest is not None and bool(self._latest.keeping)

    def kept(self, stripe: StripeKey, targets: _Row, *, strict: bool) -> _Row:
        """Where each shard may stay: on its holder if that is full, otherwise on its target.

        Args:
            stripe: the stripe.
            targets: the stripe's targets.
            strict: whether to exclude members that might lose what they hold.
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
        """Other online members that may hold shards of a stripe.

        First those of former layouts, then others in handoff order, then the rest. A worker that was lost or drained is
        in no layout any more, but may hold needed shards.
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

"""Making what a push has written durable and whole before its commit, whichever stores went away meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from storage.batching import batched
from storage.errors import DataLossError, InsufficientWorkers
from storage.keys import StripeKey
from storage.stripes import StripeStore

_AT_ONCE = 256


def make_whole(
    stripes: StripeStore, written: Callable[[], Iterable[StripeKey]], since: tuple[int, ...]
) -> tuple[int, ...]:
    """Put the shards that went to stores lost since on others, durably, so that all n are there again.

    Does nothing where no store went away, or where none stands in for another.

    Args:
        stripes: where they are.
        written: gives every stripe the push counts on.
        since: the fleet's attendance when the first of it was written.

    Returns:
        The attendance for which it is whole.

    Raises:
        InsufficientWorkers: too many stores were lost meanwhile.
    """
    volumes = stripes.volumes
    while volumes.stand_ins and since != volumes.attendance():
        since = volumes.attendance()
        for batch in batched(written(), _AT_ONCE):
            lacking = [stripe for stripe, absent in zip(batch, stripes.absent(batch), strict=True) if absent]
            for group in batched(lacking, stripes.mended_together):
                lost = next((made for made in stripes.heal_all(group) if isinstance(made, DataLossError)), None)
                if lost is not None:
                    raise InsufficientWorkers(
                        f"workers that held parts of this push went away before it was committed ({lost}); push again"
                    )
        volumes.sync_each()
    return since

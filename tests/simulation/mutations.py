"""Bugs planted in the real code. The simulator must find them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pytest

from storage.keys import ShardKey, StripeKey
from storage.maintenance.belief import Belief
from storage.maintenance.examined import Examined
from storage.maintenance.readback import Looked, Moved, ReadBack
from storage.shards import ShardStore
from storage.stripes.stripes import StripeStore
from storage.system.forks import HomeProcess
from storage.write.commit import GroupCommit
from storage.write.copies import SmallCopies
from storage.write.lineage import Lineage
from storage.write.pending import PendingVersion
from storage.write.registry import KeptUploads
from storage.write.revising import _Revision
from taskworker.transport.worker_fleet import WorkerFleet

Patch = pytest.MonkeyPatch


def pile_up(patch: Patch) -> None:
    """Placement: the first worker stands in for all absent ones."""

    def targets(fleet: WorkerFleet, stripe: StripeKey) -> tuple[int, ...]:
        holders = fleet.holders(stripe)
        online = [slot for slot in sorted(holders) if fleet.volume(slot) is not None]
        return tuple(holder if holder in online or not online else online[0] for holder in holders)

    patch.setattr(WorkerFleet, "targets", targets)


def commit_before_sync(patch: Patch) -> None:
    """Commit order: a version is entered in the catalog before its shards are durable."""

    def commit_batch(commits: GroupCommit, batch: list[PendingVersion]) -> None:
        volumes = commits._stripes.volumes
        with commits._ordering:
            plan = commits._plan(batch, [])
            volumes.append(plan.shards)
            commits._catalog.transact(partial(commits._enter, plan))
        volumes.append_and_sync({})
        for pending, outcome in zip(batch, plan.outcomes, strict=True):
            pending.settle(outcome)

    patch.setattr(GroupCommit, "_commit_batch", commit_batch)


def skip_make_whole(patch: Patch) -> None:
    """Commit order: shards on workers that were lost during the push are not made again."""

    def make_whole(
        stripes: StripeStore, written: Callable[[], Iterable[StripeKey]], since: tuple[int, ...]
    ) -> tuple[int, ...]:
        return stripes.volumes.epoch()

    for module in ("redundancy", "completing", "small"):
        patch.setattr(f"storage.write.{module}.make_whole", make_whole)


def count_on_late_workers(patch: Patch) -> None:
    """Commit order: what a push gave a worker that is late since then counts as durable there."""
    patch.setattr(WorkerFleet, "lasts", WorkerFleet.keeps)


def drop_too_early(patch: Patch) -> None:
    """Repair: former copies are dropped even if the new ones are missing or not durable."""

    def look(readback: ReadBack, moved: Sequence[Moved], epoch: tuple[int, ...]) -> Looked:
        readback._drop_former(moved)
        return Looked([], [])

    def alike(readback: ReadBack, keys: Sequence[ShardKey], former: int, proper: int) -> list[ShardKey]:
        return list(keys)

    patch.setattr(ReadBack, "look", look)
    patch.setattr(ReadBack, "alike", alike)


def retire_too_early(patch: Patch) -> None:
    """Repair: former layouts are forgotten while shards are still in the places they gave."""

    def elsewhere(fleet: WorkerFleet, stripe: StripeKey) -> tuple[int, ...]:
        return ()

    patch.setattr(WorkerFleet, "elsewhere", elsewhere)


def believe_workers(patch: Patch) -> None:
    """Rebalance: if a worker claims to hold a shard, another worker's copy is dropped without reading it back."""

    def alike(readback: ReadBack, keys: Sequence[ShardKey], former: int, proper: int) -> list[ShardKey]:
        store = readback._fleet.volume(proper)
        missing = set(range(len(keys)) if store is None else store.missing(keys))
        return [key for at, key in enumerate(keys) if at not in missing]

    patch.setattr(ReadBack, "alike", alike)


def drop_uncompared(patch: Patch) -> None:
    """Rebalance: a former copy is dropped although the new one was not returned as it was written."""

    def right_ones(readback: ReadBack, store: int, volume: ShardStore, written: Sequence[Moved]) -> list[Moved]:
        return list(written)

    patch.setattr(ReadBack, "_right_ones", right_ones)


def go_on_behind(patch: Patch) -> None:
    """Restored copies: a pool whose catalog is older than what the workers hold writes and collects nevertheless."""
    patch.setattr(Lineage, "check_current", lambda lineage: None)


def overlook_older_catalogs(patch: Patch) -> None:
    """Restored copies: a catalog counts as current, whatever the workers hold."""
    patch.setattr(Lineage, "_compare", lambda lineage, slot, name, newest, owner="": None)


def believe_stale_volumes(patch: Patch) -> None:
    """Restored copies: a worker's volume counts as complete even if it lacks shards that it had."""
    patch.setattr(Lineage, "_expected", lambda lineage, slot: [])


def believe_unsigned_records(patch: Patch) -> None:
    """Rebuild: versions and tombstones are believed without the store's MAC."""
    patch.setattr(Belief, "agreed", lambda belief, questions, volume: set(questions))


def ignore_owners(patch: Patch) -> None:
    """Layout: owners of workers are ignored."""
    for module in ("assignment", "layout"):
        patch.setattr(f"storage.fleet.{module}.by_owner", lambda member: "")


def collect_beside_uploads(patch: Patch) -> None:
    """Collect: chunks claimed by uploads under way are removed."""
    patch.setattr(KeptUploads, "keep", lambda kept, uploads: False)


def use_after_fork(patch: Patch) -> None:
    """Forks: a child may use a store that its parent opened."""
    patch.setattr(HomeProcess, "check", lambda home: None)


def close_after_fork(patch: Patch) -> None:
    """Forks: a child that closes its copy of a store closes its parent's store."""
    patch.setattr(HomeProcess, "is_here", property(lambda home: True))


def take_absent_workers_for_lost(patch: Patch) -> None:
    """Rebuild: what absent workers may hold counts as lost."""

    def nobody(examined: Examined) -> list[tuple[int, str]]:
        return []

    patch.setattr(Examined, "lacking", nobody)
    patch.setattr(Examined, "may_come_back", lambda examined: False)


def leave_copies_behind(patch: Patch) -> None:
    """Copies: the chunk of a file that grows is not stored again as shards."""
    patch.setattr(_Revision, "_carry_over", lambda revision: None)


def tell_copies_apart(patch: Patch) -> None:
    """Copies: the same content is another version if the limit for copies has changed."""
    patch.setattr(SmallCopies, "are_alike", lambda copies, one, other: False)


MUTATIONS: tuple[Callable[[Patch], None], ...] = (
    pile_up,
    commit_before_sync,
    skip_make_whole,
    count_on_late_workers,
    drop_too_early,
    retire_too_early,
    believe_workers,
    drop_uncompared,
    go_on_behind,
    overlook_older_catalogs,
    believe_stale_volumes,
    believe_unsigned_records,
    ignore_owners,
    collect_beside_uploads,
    take_absent_workers_for_lost,
    leave_copies_behind,
    tell_copies_apart,
    use_after_fork,
    close_after_fork,
)

"""A seventh worker is added and taken away again under load; every shard that moves is counted."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping

from storage.fleet.placement import PARTITIONS
from storage.keys import Kind, ShardKey, kind_of
from storage.limits import KIB, MIB
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.shards import keys_at
from tests.cluster.campaign.users import User, Users
from tests.cluster.processes import Cluster

_USERS = 2
_FILE_BYTES = 64 * MIB
_CHUNK_BYTES = 64 * KIB  # small, so that there are many to count
_MOVED_WITHIN_S = 600.0
_ADDED = "w6"

Owners = Mapping[ShardKey, str]


def grow(run: Run) -> None:
    """Add a worker, count; drain it, count; files enough that the shares can be told from chance."""
    verdicts = run.verdicts
    with Cluster(run.directory) as cluster:
        owner = User(cluster.address, "owner", run.seed, run.directory)
        try:
            digests = {
                name: owner.do("push", name=name, size=_FILE_BYTES, chunk_size=_CHUNK_BYTES)["digest"]
                for name in (f"kept-{run.seed}-{number}" for number in range(run.rounds))
            }
            cluster.await_survivable(2)
            watched = _owners(cluster)
            verdicts.progress(f"{run.rounds * _FILE_BYTES >> 20} MiB in {len(watched):,} shards are there")
            with Users(cluster.address, _USERS, run.seed, run.directory) as users:
                users.resume()
                with_seven = _add(run, cluster, watched)
                _take_away(run, cluster, with_seven)
                users.pause()
                users.verify()
                verdicts.note(f"meanwhile: {users.account}; longest call {users.account.longest_s:.2f} s")
                verdicts.errors(
                    "errors seen by clients, or bytes that were not those acknowledged", users.account.errors
                )
            wrong = [name for name, digest in digests.items() if owner.do("get", name=name)["digest"] != digest]
            verdicts.errors("files that read back wrong at the end", wrong)
        finally:
            owner.end()


def _add(run: Run, cluster: Cluster, before: Owners) -> Owners:
    verdicts = run.verdicts
    share, version = 1 / 7, cluster.status().layout_version
    planned = cluster.planned_moves(_ADDED)
    began_s = time.monotonic()
    cluster.start_worker(_ADDED)
    cluster.await_moved(version + 2, _MOVED_WITHIN_S)  # first a part on trial, then all of it
    verdicts.progress(f"the seventh worker has its part after {time.monotonic() - began_s:.1f} s")
    after = _owners(cluster, before)
    moved = [key for key, worker in after.items() if before[key] != worker]
    slots = PARTITIONS * 6  # 6 shards of a stripe; a layout moves whole slots
    verdicts.check(
        "share of shards that the layout moves, between 1/7 and 1.1/7 but for the rounding to whole slots",
        f"{planned:.4f}, {planned / share:.3f} of 1/7; {planned * slots:.0f} of {slots} slots",
        holds=int(share * slots) <= round(planned * slots) <= 1.1 * share * slots,
    )
    # Which chunk falls into which partition is chance: this much of it is to be borne with.
    chance = 3 * math.sqrt(share * (1 - share) / len(before))
    real = len(moved) / len(before)
    verdicts.check(
        f"share of real shards moved, the same (give or take {chance:.4f} by chance below)",
        f"{real:.4f}, {real / share:.3f} of 1/7; {len(moved):,} of {len(before):,}",
        holds=share - chance <= real <= 1.1 * share,
    )
    others = Counter(after[key] for key in moved if after[key] != _ADDED)
    verdicts.check("shards that moved between the others", str(others.total()), holds=not others)
    verdicts.check("shards lost on the way", str(len(before) - len(after)), holds=len(after) == len(before))
    return after


def _take_away(run: Run, cluster: Cluster, before: Owners) -> None:
    verdicts = run.verdicts
    version = cluster.status().layout_version
    began_s = time.monotonic()
    planned = cluster.drain(_ADDED)
    cluster.await_moved(version + 1, _MOVED_WITHIN_S)
    verdicts.progress(f"the seventh worker is drained after {time.monotonic() - began_s:.1f} s")
    after = _owners(cluster, before)
    own = sum(worker == _ADDED for worker in before.values())
    moved = [key for key, worker in after.items() if before[key] != worker]
    foreign = sum(before[key] != _ADDED for key in moved)
    verdicts.check(
        "draining it moves only its own shards",
        f"{len(moved):,} moved ({planned:.4f} planned), {foreign} of others, of {own:,} that it had",
        holds=not foreign and len(moved) == own,
    )
    left = sum(worker == _ADDED for worker in after.values())
    verdicts.check("shards left on it", str(left), holds=not left)
    verdicts.check("shards lost on the way", str(len(before) - len(after)), holds=len(after) == len(before))


def _owners(cluster: Cluster, watched: Owners | None = None) -> Owners:
    """Which worker has each shard; only those watched, if told. Marks belong to a worker, and do not move.

    Raises:
        AssertionError: two workers have the same shard.
    """
    owners: dict[ShardKey, str] = {}
    for name, process in cluster.workers.items():
        for key in keys_at(process.shard_address):
            if kind_of(key) != Kind.MARK and (watched is None or key in watched):
                assert key not in owners, f"{name} and {owners[key]} both have the shard {key.hex()}"
                owners[key] = name
    return owners

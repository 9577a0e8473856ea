"""Any two of six workers are killed under load, mended around, and come back; again and again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

from storage.keys import ID_BYTES, Kind, ShardKey
from storage.reports import ScrubReport
from storage.shards import Location
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.shards import places_at
from tests.cluster.campaign.users import Users
from tests.cluster.campaign.verdicts import spread
from tests.cluster.processes import Cluster

_USERS = 3
_COLLECT_EVERY = 10
_TOLD_EVERY = 10
_KILLED = 2
_DAMAGE_TOLD_MAX = 5
_GRACE_S = 2.0  # full redundancy includes copies of metadata, which are made again once it is over

_COLLECTS_WHEN_TOLD = ("--collect-every", "0")  # they move shards within a volume, as if these were made again

Places = dict[ShardKey, Location]


@dataclass(slots=True)
class _Seen:
    """What the rounds showed."""

    mended_s: list[float] = field(default_factory=list)
    whole_again_s: list[float] = field(default_factory=list)
    kept: int = 0  # shards that those who came back still had
    made: int = 0  # shards that they were given
    made_again: Counter[str] = field(default_factory=Counter)  # of those they still had, by kind
    missing: int = 0
    misplaced: int = 0
    checked: int = 0
    damaged: list[str] = field(default_factory=list)

    def add(self, scrubbed: ScrubReport) -> None:
        """Count what a scrub found."""
        self.missing += scrubbed.missing + scrubbed.rotten
        self.misplaced += scrubbed.misplaced
        self.checked += scrubbed.shards_checked
        self.damaged += [damage.text for damage in scrubbed.damaged]


def kill_workers(run: Run) -> None:
    """SIGKILL two workers at random moments of a load; wait for full redundancy; have both come back."""
    rng, verdicts, seen = run.rng, run.verdicts, _Seen()
    with (
        Cluster(run.directory, grace_s=_GRACE_S, options=_COLLECTS_WHEN_TOLD) as cluster,
        Users(cluster.address, _USERS, run.seed, run.directory) as users,
    ):
        for number in range(1, run.rounds + 1):
            users.resume()
            time.sleep(rng.uniform(0.1, 0.8))
            _round(cluster, users, rng, seen)
            if number % _COLLECT_EVERY == 0:
                cluster.client.collect(grace_s=0)
            if number % _TOLD_EVERY == 0:
                verdicts.progress(f"round {number}: {users.account}, {len(users.account.errors)} errors")
        users.pause()
        users.verify()
        seen.add(cluster.client.scrub())
    account = users.account
    verdicts.note(f"{run.rounds} rounds, {_KILLED} of 6 workers killed in each; {account}")
    verdicts.errors("errors seen by clients, or bytes that were not those acknowledged", account.errors)
    verdicts.note(
        f"{account.bytes_verified / 1e9:.2f} GB read back and compared; longest call {account.longest_s:.2f} s"
    )
    verdicts.check(
        "full redundancy again without a command, in every round",
        spread(seen.mended_s, "s") + f" after the kills, with a grace of {_GRACE_S:g} s",
        holds=len(seen.mended_s) == run.rounds,
    )
    verdicts.check(
        "shards missing or rotten when looked at, with two workers away and at the end",
        f"{seen.missing} of {seen.checked:,}; {seen.misplaced} intact ones not in place",
        holds=not seen.missing,
    )
    for text in seen.damaged[:_DAMAGE_TOLD_MAX]:
        verdicts.note(text)
    verdicts.check(
        "shards made again that the workers that came back still had",
        f"{seen.made_again.total()} {dict(seen.made_again)} of {seen.kept:,} kept; "
        f"they were given {seen.made:,} that they had missed",
        holds=seen.kept > 0 and not seen.made_again,
    )
    verdicts.note(f"whole with all six again {spread(seen.whole_again_s, 's')} after both were started")


def _round(cluster: Cluster, users: Users, rng: Random, seen: _Seen) -> None:
    names = rng.sample(sorted(cluster.workers), _KILLED)
    quiet = rng.random() < 0.5
    cluster.kill(*names)
    began_s = time.monotonic()
    # A pool that has not noticed yet still believes that it could lose two.
    cluster.await_status(lambda status: sum(worker.state == "alive" for worker in status.workers) == 6 - _KILLED)
    _await_redundancy(cluster)
    seen.mended_s.append(time.monotonic() - began_s)
    if quiet:
        users.pause()
        users.verify()
        _await_redundancy(cluster)
        seen.add(cluster.client.scrub())
    began_s = time.monotonic()
    kept = _start(cluster, names)
    cluster.await_status(lambda status: all(worker.state == "alive" for worker in status.workers))
    cluster.await_survivable(2)
    seen.whole_again_s.append(time.monotonic() - began_s)
    for name, places in zip(names, kept, strict=True):
        _compare(places, places_at(cluster.workers[name].shard_address), seen)


def _await_redundancy(cluster: Cluster) -> None:
    """Wait until nothing is to be made any more: copies of metadata are not, as long as workers may come back."""
    cluster.await_status(
        lambda status: (
            status.workers_survivable >= 1
            and not status.is_mending
            and sum(worker.state == "lost" for worker in status.workers) == _KILLED
            and not any(work.name == "repair" and work.state == "waiting" for work in status.work)
        )
    )


def _start(cluster: Cluster, names: Sequence[str]) -> list[Places]:
    """Start workers again; what each of them still had, before anything was given to it by repair."""

    def start(name: str) -> Places:
        return places_at(cluster.start_worker(name).shard_address)

    with ThreadPoolExecutor(len(names)) as threads:
        return list(threads.map(start, names))


def _compare(before: Places, after: Places, seen: _Seen) -> None:
    seen.kept += len(before)
    seen.made += len(after.keys() - before.keys())
    again = (key for key, place in before.items() if key in after and after[key] != place)
    seen.made_again.update(Kind(key[ID_BYTES]).name for key in again)

"""The pool is killed under load and started again at its address; again and again."""

from __future__ import annotations

import time

from tests.cluster.campaign.run import Run
from tests.cluster.campaign.users import Users
from tests.cluster.campaign.verdicts import spread
from tests.cluster.processes import Cluster

_USERS = 3
_DEADLINE_S = 60.0  # of every call of the users
_COLLECT_EVERY = 10
_TOLD_EVERY = 10


def kill_pool(run: Run) -> None:
    """SIGKILL the pool at random moments of a load, restart it, and hold every file against the ledgers."""
    rng, verdicts = run.rng, run.verdicts
    back_s: list[float] = []
    with (
        Cluster(run.directory) as cluster,
        Users(cluster.address, _USERS, run.seed, run.directory, may_be_refused=True) as users,
    ):
        for number in range(1, run.rounds + 1):
            users.resume()
            time.sleep(rng.uniform(0.1, 1.0))
            cluster.pool_process.kill()
            time.sleep(rng.choice((0.0, rng.uniform(0.0, 3.0))))
            began_s = time.monotonic()
            cluster.restart_pool()
            cluster.await_status(lambda status: all(worker.state == "alive" for worker in status.workers))
            back_s.append(time.monotonic() - began_s)
            users.pause()
            users.verify()
            if number % _COLLECT_EVERY == 0:
                cluster.client.collect(grace_s=0)
            if number % _TOLD_EVERY == 0:
                verdicts.progress(f"round {number}: {users.account}, {len(users.account.errors)} errors")
        cluster.await_survivable(2)
        scrubbed = cluster.client.scrub()
        users.verify()
    account = users.account
    verdicts.note(f"{run.rounds} rounds; {account}")
    verdicts.errors(
        "errors other than a clear UNAVAILABLE, bytes lost that were acknowledged, changes half visible", account.errors
    )
    verdicts.check(
        "calls refused as UNAVAILABLE, the longest call within its deadline",
        f"{account.refused}, {account.longest_s:.2f} s of {_DEADLINE_S:.0f} s",
        holds=account.longest_s < _DEADLINE_S,
    )
    verdicts.note(f"{account.bytes_verified / 1e9:.2f} GB read back and compared")
    verdicts.note(f"all workers with the pool again {spread(back_s, 's')} after it was started")
    missing = scrubbed.missing + scrubbed.rotten
    verdicts.check(
        "shards missing or rotten at the end", f"{missing} of {scrubbed.shards_checked:,}", holds=not missing
    )

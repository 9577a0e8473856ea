"""Workers that lie, hang or crawl: gets stay exact and quick, and the liars are named."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from storage.limits import KIB, MIB
from taskworker.client.pool import PoolStatus
from tests.cluster.campaign.command import status_command
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.users import User, Users
from tests.cluster.processes import Cluster

_FILES = 60
_GETS_S = 5.0  # some hundred gets of 1 MiB: enough for a 99th percentile
_WORK_S = 5.0
_SLOW = f"slow {10 * KIB}"
_RATIO_MAX = 3.0
_TRANQUILITY = 4.0  # what `taskworker pool` has by default: repair makes way for users
_MISFIT = "tests.cluster.campaign.misfit"

_STOPPED, _SWALLOWS, _SLOW_ONE, _WRONG, _OTHER = "w1", "w2", "w3", "w4", "w5"


@dataclass(slots=True)
class _Times:
    """Gets of 1 MiB under one condition: the 99th percentile and the median of each measurement, seconds."""

    p99: list[float] = field(default_factory=list)
    median: list[float] = field(default_factory=list)
    gets: int = 0

    def add(self, taken: list[float]) -> None:
        """One measurement."""
        ordered = sorted(taken)
        self.p99.append(ordered[len(ordered) * 99 // 100])
        self.median.append(statistics.median(ordered))
        self.gets += len(ordered)

    def __str__(self) -> str:
        p99, median = statistics.median(self.p99), statistics.median(self.median)
        return f"p99 {1000 * p99:.1f} ms, median {1000 * median:.1f} ms ({self.gets} gets)"


class _Reader:
    """Times gets of files that are there."""

    def __init__(self, cluster: Cluster, run: Run) -> None:
        self._user = User(cluster.address, "reader", run.seed, run.directory)
        self._names = [f"read-{run.seed}-{number}" for number in range(_FILES)]
        for name in self._names:
            self._user.do("push", name=name, size=MIB)
        self.times: dict[str, _Times] = {}

    def measure(self, condition: str) -> None:
        """Get files for a while; their bytes are compared."""
        taken = self._user.do("time_gets", names=self._names, seconds=_GETS_S)["seconds"]
        self.times.setdefault(condition, _Times()).add(taken)

    def end(self) -> None:
        """End the process."""
        self._user.end()


def misbehave(run: Run) -> None:
    """Time gets while one worker hangs, swallows or crawls; then have two lie while users are at work."""
    with Cluster(run.directory, tranquility=_TRANQUILITY) as cluster:
        reader = _Reader(cluster, run)
        try:
            reader.measure("warming up")
            for number in range(run.rounds):
                _measure_all(cluster, reader)
                run.verdicts.progress(f"round {number + 1} of measurements")
            _lies(run, cluster, reader)
        finally:
            reader.end()
        _tell_times(run, reader)


def _measure_all(cluster: Cluster, reader: _Reader) -> None:
    cluster.await_survivable(2)
    reader.measure("healthy")
    with _stopped(cluster):
        reader.measure("one stopped")
    for name, conduct, condition in (
        (_SWALLOWS, "swallow", "one swallows"),
        (_SLOW_ONE, _SLOW, "one at 10 KB/s"),
    ):
        _replace(cluster, name, _MISFIT)
        with _behaving(cluster, name, conduct):
            reader.measure(condition)
        _replace(cluster, name, "taskworker")


def _lies(run: Run, cluster: Cluster, reader: _Reader) -> None:
    """Two liars, then each of them with a hanging one, with users at work."""
    for name in (_WRONG, _OTHER):
        _replace(cluster, name, _MISFIT)
    with Users(cluster.address, 2, run.seed, run.directory) as users:
        users.resume()
        with _behaving(cluster, _WRONG, "wrong-bytes"):
            reader.measure("one with wrong bytes")
            with _stopped(cluster):
                reader.measure("one with wrong bytes, one stopped")
            with _behaving(cluster, _OTHER, "other-chunks"):
                reader.measure("one with wrong bytes, one with other chunks")
        with _behaving(cluster, _OTHER, "other-chunks"):
            reader.measure("one with other chunks")
            time.sleep(_WORK_S)
        users.pause()
        users.verify()
        cluster.await_survivable(1)  # those that were shown to lie are not counted on for ten minutes
        account = users.account
    run.verdicts.note(f"with liars: {account}; longest call {account.longest_s:.2f} s")
    run.verdicts.errors("errors seen by clients, or bytes that were not those acknowledged", account.errors)
    told = status_command(cluster.address)
    named = [line for line in told.splitlines() if line.startswith("! ") and "master key" not in line]
    right = {name for name in (_WRONG, _OTHER) if any(line.startswith(f"! {name} sent") for line in named)}
    run.verdicts.check(
        "liars named by `taskworker status`, and nobody else",
        "; ".join(named) or "nobody",
        holds=right == {_WRONG, _OTHER} and len(named) == len(right),
    )


def _tell_times(run: Run, reader: _Reader) -> None:
    healthy = statistics.median(reader.times["healthy"].p99)
    run.verdicts.note(f"gets of 1 MiB, healthy: {reader.times['healthy']}")
    for condition in ("one stopped", "one swallows", "one at 10 KB/s"):
        ratio = statistics.median(reader.times[condition].p99) / healthy
        run.verdicts.check(
            f"p99 of gets of 1 MiB with {condition}, at most {_RATIO_MAX:g} times the healthy one",
            f"{ratio:.2f} times; {reader.times[condition]}",
            holds=ratio <= _RATIO_MAX,
        )
    for condition in [one for one in reader.times if one.startswith("one with")]:
        run.verdicts.note(f"{condition}, users at work: {reader.times[condition]}")


@contextmanager
def _stopped(cluster: Cluster) -> Iterator[None]:
    """One worker hangs."""
    cluster.workers[_STOPPED].signal(signal.SIGSTOP)
    yield
    cluster.workers[_STOPPED].signal(signal.SIGCONT)
    _await_whole(cluster)


@contextmanager
def _behaving(cluster: Cluster, name: str, conduct: str) -> Iterator[None]:
    """A misfit behaves in some way."""
    cluster.workers[name].tell(conduct)
    yield
    cluster.workers[name].tell("honest")
    _await_whole(cluster)


def _replace(cluster: Cluster, name: str, module: str) -> None:
    """Stop a worker and start it anew as another program, over the same volume."""
    cluster.workers.pop(name).stop()
    cluster.start_worker(name, module=module)
    _await_whole(cluster)


def _await_whole(cluster: Cluster) -> None:
    """All are there, and every shard is in its place. Those shown to lie are not counted on for ten minutes."""

    def is_whole(status: PoolStatus) -> bool:
        there = all(worker.state in ("alive", "distrusted") for worker in status.workers)
        # A lie may come to light while this waits: one worker less can be survived then.
        liars = any(worker.state == "distrusted" for worker in status.workers)
        return there and status.workers_survivable >= (1 if liars else 2) and not status.is_mending

    status = cluster.await_status(is_whole)
    liars = {worker.worker_id for worker in status.workers if worker.state == "distrusted"}
    if not liars <= {_WRONG, _OTHER}:
        raise AssertionError(f"distrusted are {liars}, not only those that lied")

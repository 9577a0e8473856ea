"""A file of 4 GiB, then eight clients at once against one: memory and throughput."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from storage.limits import MIB
from tests.cluster.campaign.memory import Memory, MemoryWatch
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.users import Answer, User
from tests.cluster.processes import Cluster

_LARGE_BYTES = 4096 * MIB
_SHARED_BYTES = 1024 * MIB  # of one client, or of eight together
_CLIENTS = 8
_CLIENT_BYTES_MAX = 150 * MIB
_POOL_BYTES_MAX = 300 * MIB
_RATIO_MIN = 0.9


def large(run: Run) -> None:
    """Move a large file; then compare one client with eight, alternating, with the pool's memory watched."""
    with Cluster(run.directory, workers=6) as cluster:
        users = [User(cluster.address, f"client-{number}", run.seed, run.directory) for number in range(_CLIENTS)]
        try:
            _one_large_file(run, cluster, users[0])
            cluster.client.collect(grace_s=0)
            _one_against_many(run, cluster, users)
        finally:
            for user in users:
                user.end()


def _one_large_file(run: Run, cluster: Cluster, user: User) -> None:
    verdicts, name = run.verdicts, f"large-{run.seed}"
    digests = []
    for what, arguments in (("push", {"name": name, "size": _LARGE_BYTES}), ("get", {"name": name})):
        with MemoryWatch(cluster.pool_process.pid) as pool, MemoryWatch(user.pid) as client:
            answer = user.do(what, **arguments)
            _check_memory(run, f"client's memory in a {what} of 4 GiB", client.peak(), _CLIENT_BYTES_MAX)
            _check_memory(run, f"pool's memory in a {what} of 4 GiB", pool.peak(), _POOL_BYTES_MAX)
        verdicts.note(f"{what} of 4 GiB at {_LARGE_BYTES / 1e6 / answer['seconds']:.0f} MB/s")
        digests.append(answer["digest"])
    verdicts.check("4 GiB read back", f"BLAKE3 {digests[1][:16]}", holds=digests[0] == digests[1])
    user.do("delete", name=name)


def _one_against_many(run: Run, cluster: Cluster, users: Sequence[User]) -> None:
    rates: dict[tuple[str, int], list[float]] = {}
    with MemoryWatch(cluster.pool_process.pid) as pool:
        for number in range(run.rounds):
            for count in (1, _CLIENTS):
                names = [f"shared-{run.seed}-{number}-{count}-{index}" for index in range(count)]
                size = _SHARED_BYTES // count
                chosen = users[:count]
                for what in ("push", "get"):
                    extra = {"size": size} if what == "push" else {}
                    rates.setdefault((what, count), []).append(
                        _SHARED_BYTES / 1e6 / _timed(chosen, what, [{"name": name, **extra} for name in names])
                    )
                _timed(chosen, "delete", [{"name": name} for name in names])
            run.verdicts.progress(f"round {number + 1}: " + _told(rates))
            cluster.client.collect(grace_s=0)
        _check_memory(run, f"pool's memory under {_CLIENTS} clients", pool.peak(), _POOL_BYTES_MAX)
    for what in ("push", "get"):
        one, many = (statistics.median(rates[what, count]) for count in (1, _CLIENTS))
        run.verdicts.check(
            f"{what}: {_CLIENTS} clients together against one, at least {_RATIO_MIN} times",
            f"{many / one:.2f} times; {many:.0f} and {one:.0f} MB/s",
            holds=many >= _RATIO_MIN * one,
        )


def _timed(users: Sequence[User], command: str, arguments: Sequence[Answer]) -> float:
    """Seconds until all of them are done."""
    began_s = time.perf_counter()
    waiting: list[Callable[[], Answer]] = [
        user.begin(command, **each) for user, each in zip(users, arguments, strict=True)
    ]
    for answer in waiting:
        answer()
    return time.perf_counter() - began_s


def _told(rates: dict[tuple[str, int], list[float]]) -> str:
    return ", ".join(f"{what} by {count} at {found[-1]:.0f} MB/s" for (what, count), found in rates.items())


def _check_memory(run: Run, what: str, memory: Memory, most: int) -> None:
    run.verdicts.check(f"{what}, at most {most // MIB} MiB", str(memory), holds=memory.resident <= most)

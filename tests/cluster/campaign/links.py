"""Workers behind slow, lossy and distant links: nothing fails, nobody is suspected, and the links are used."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

from storage.errors import StorageError
from storage.limits import MIB
from taskworker import Client
from taskworker.client.pool import EventStatus
from tests.cluster.campaign.link_traffic import CALL_S, PLAIN_SHARE, Seen, during, push_and_get
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.verdicts import Verdicts
from tests.cluster.links.network import POOL_HOST, Network, is_inside, run_inside, why_not
from tests.cluster.links.plain import PlainConnections, plain_server
from tests.cluster.links.shape import Shape
from tests.cluster.processes import Cluster

_WORKERS = 6
_K, _N = 4, 6
_BYTES, _BYTES_BRIEFLY = 8 * MIB, MIB
# The kernel's congestion control may go by the shortest round trip of the last 10 s, which was before the change.
_SETTLE_S = 15.0
_BRIEFLY_S = 10  # shorter runs are for tests, which look for failures only
_RATIO_MIN = 0.7
_WHOLE_S = 300.0
_SLOW = 0  # the worker with another link than the others
_SUSPICIONS = ("suspect", "lost", "joined", "left")

_FAR = Shape(delay_ms=50, jitter_ms=20)
# A client's own link, over which a push through the pool is faster: it carries fewer bytes.
_GUEST_AT = "the client itself at 10 Mbit/s, 20 ms away", Shape(delay_ms=20, rate_kbit=10_000)


@dataclass(frozen=True, slots=True)
class _Condition:
    """Links to all workers, and to one of them.

    Attributes:
        shape: of all links.
        other: of one worker's link; None: like the others.
        may_suspect: whether that worker may be suspected.
    """

    shape: Shape
    other: Shape | None = None
    may_suspect: bool = False


_CONDITIONS: Mapping[str, _Condition] = {
    "50 ms ± 20": _Condition(_FAR),
    "50 ms ± 20, 2 % lost": _Condition(Shape(delay_ms=50, jitter_ms=20, loss=0.02)),
    "50 ms ± 20, 2 % lost, 5 % reordered": _Condition(Shape(delay_ms=50, jitter_ms=20, loss=0.02, reorder=0.05)),
    "10 Mbit/s": _Condition(Shape(rate_kbit=10_000)),
    "10 Mbit/s, one worker at 1 Mbit/s": _Condition(Shape(rate_kbit=10_000), Shape(rate_kbit=1_000)),
    "one worker loses all for 2 s in every 4": _Condition(Shape(), Shape(outage_s=2.0), may_suspect=True),
}
MEASURED = (*_CONDITIONS, _GUEST_AT[0])
"""The name of each condition, in the order in which they are measured."""


def links(run: Run) -> None:
    """Push and get 8 MiB over and over, over links of each kind."""
    if why := why_not():
        run.verdicts.note(f"SKIPPED: {why}")
        return
    if not is_inside():
        command = [sys.executable, "-m", "tests.cluster", "links", "--rounds", str(run.rounds)]
        code = run_inside([*command, "--seed", str(run.seed), "--dir", str(run.directory.parent)])
        run.verdicts.check("the scenario in a namespace of its own ended well", str(code), holds=code == 0)
        return
    with Network(_WORKERS) as network, PlainConnections(network, _WORKERS) as plain:
        rng = run.rng

        def place(number: int) -> tuple[tuple[str, ...], str]:
            return network.inside(number), network.host(number)

        with Cluster(run.directory, host=POOL_HOST, place=place, tranquility=4.0, grace_s=30.0) as cluster:
            for name, condition in _CONDITIONS.items():
                network.shape_all(Shape())
                _await_whole(cluster)
                _measure(run, rng, name, condition, network, plain, cluster)
            network.shape_all(Shape())
            _await_whole(cluster)
            _measure_guest(run, network, cluster)


def _measure(
    run: Run,
    rng: Random,
    name: str,
    condition: _Condition,
    network: Network,
    plain: PlainConnections,
    cluster: Cluster,
) -> None:
    size = _size(run)
    network.shape_all(condition.shape)
    if condition.other is not None:
        network.shape(_SLOW, condition.other)
    time.sleep(0.5)
    seen = Seen()
    with _watched(cluster) as events:
        if size == _BYTES:
            with Client(cluster.address, timeout_s=CALL_S) as client:
                for _ in during(_SETTLE_S):
                    plain.send(size // _K)
                    push_and_get(client, rng.randbytes(size), seen)
            seen.push_s.clear()
            seen.get_s.clear()
        for _ in during(run.rounds * PLAIN_SHARE):
            seen.plain_push_s.append(plain.send(size // _K))
            seen.plain_get_s.append(plain.receive(size // _N))
        with Client(cluster.address, timeout_s=CALL_S) as client:
            for _ in during(run.rounds):
                push_and_get(client, rng.randbytes(size), seen)
    _tell(run.verdicts, name, condition, size, seen, list(events.values()))


def _measure_guest(run: Run, network: Network, cluster: Cluster) -> None:
    """Push and get from a namespace of its own, behind a link through which both the pool and all workers are reached.

    That is compared with one connection to the pool's host.
    """
    name, shape = _GUEST_AT
    size = _size(run)
    network.shape(_WORKERS, shape)
    time.sleep(0.5)
    with _watched(cluster) as events, plain_server((), POOL_HOST) as port:
        command = [*network.inside(_WORKERS), sys.executable, "-m", "tests.cluster.campaign.link_traffic"]
        settle_s = _SETTLE_S if size == _BYTES else 0.0
        command += [cluster.address, str(port), str(size), str(run.rounds), str(settle_s), str(run.seed)]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
        seen = Seen.from_json(ended.stdout)
    _tell(run.verdicts, name, _Condition(shape), size, seen, list(events.values()))


def _size(run: Run) -> int:
    return _BYTES if run.rounds >= _BRIEFLY_S else _BYTES_BRIEFLY


def _tell(
    verdicts: Verdicts, name: str, condition: _Condition, size: int, seen: Seen, events: list[EventStatus]
) -> None:
    verdicts.errors(f"{name}: failed operations", seen.errors)
    suspicions = [event for event in events if event.kind in _SUSPICIONS]
    if condition.may_suspect:
        suspicions = [event for event in suspicions if f"w{_SLOW} " not in event.text]
    verdicts.errors(f"{name}: false suspicions", [event.text for event in suspicions])
    verdicts.note(f"events: {dict(Counter(event.kind for event in events))}")
    for what, taken_s, plain_s in (
        ("pushed", seen.push_s, seen.plain_push_s),
        ("got", seen.get_s, seen.plain_get_s),
    ):
        rate, plain_rate = (size / 1e6 / statistics.fmean(each) if each else 0.0 for each in (taken_s, plain_s))
        verdicts.check(
            f"{name}: {size // MIB} MiB {what}, at least {_RATIO_MIN:g} times plain connections",
            f"{rate / plain_rate:.2f} times; {rate:.2f} MB/s, plain {plain_rate:.2f} MB/s, {len(taken_s)} times, "
            f"{min(taken_s, default=0):.2f} to {max(taken_s, default=0):.2f} s",
            holds=rate >= _RATIO_MIN * plain_rate,
        )


@contextlib.contextmanager
def _watched(cluster: Cluster) -> Iterator[dict[tuple[int, str], EventStatus]]:
    """Gather the pool's events meanwhile; it keeps only the latest."""
    events: dict[tuple[int, str], EventStatus] = {}
    before = {(event.time_ms, event.text) for event in cluster.status().events}
    going = True

    def gather() -> None:
        while going:
            with contextlib.suppress(StorageError):
                events.update({(event.time_ms, event.text): event for event in cluster.status().events})
            time.sleep(1.0)

    with ThreadPoolExecutor(1) as thread:
        gathering = thread.submit(gather)
        try:
            yield events
        finally:
            going = False
            gathering.result()
            for event in before:
                events.pop(event, None)


def _await_whole(cluster: Cluster) -> None:
    cluster.await_status(
        lambda status: (
            all(worker.state == "alive" for worker in status.workers)
            and status.workers_survivable >= _N - _K
            and not status.is_mending
        ),
        _WHOLE_S,
    )

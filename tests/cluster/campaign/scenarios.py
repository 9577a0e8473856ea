"""All scenarios, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster.campaign.alerts import alerts
from tests.cluster.campaign.combinations import combinations
from tests.cluster.campaign.floods import floods
from tests.cluster.campaign.grow import grow
from tests.cluster.campaign.hosts import hosts
from tests.cluster.campaign.kill_pool import kill_pool
from tests.cluster.campaign.kill_workers import kill_workers
from tests.cluster.campaign.large import large
from tests.cluster.campaign.links import links
from tests.cluster.campaign.million import million
from tests.cluster.campaign.misbehave import misbehave
from tests.cluster.campaign.rotate import rotate
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.upgrade import upgrade


def _s3_combinations(run: Run) -> None:
    """The only scenario that needs boto3, which not every environment has."""
    from tests.cluster.campaign.s3_combinations import s3_combinations

    s3_combinations(run)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario: what it shows, how many rounds it takes by default."""

    play: Callable[[Run], None]
    rounds: int
    what: str


SCENARIOS = {
    "kill-workers": Scenario(kill_workers, 100, "any two of six workers are killed under load, N times"),
    "kill-pool": Scenario(kill_pool, 100, "the pool is killed under load, N times"),
    "misbehave": Scenario(misbehave, 3, "workers lie, hang and crawl; gets are timed N times in each condition"),
    "grow": Scenario(grow, 10, "a seventh worker is added and drained again under load, over N files of 64 MiB"),
    "large": Scenario(large, 3, "4 GiB pushed and read; then one client against eight, N times"),
    "links": Scenario(links, 300, "8 MiB are pushed and got over slow, lossy and distant links, N seconds over each"),
    "hosts": Scenario(hosts, 60, "eight machines by the how-to page, over good and bad lines; N seconds of transfers"),
    "rotate": Scenario(
        rotate, 240, "keys, certificates and their authority change under load, for N seconds; what thieves then get"
    ),
    "upgrade": Scenario(
        upgrade, 5, "pools of former commits are upgraded under load, with N seconds between the steps"
    ),
    "floods": Scenario(
        floods, 15, "a user floods the pool in four ways; others' calls are timed for N seconds in each"
    ),
    "combinations": Scenario(
        combinations, 20, "all calls, upkeep and kills in random order, held against a model after each of N rounds"
    ),
    "s3-combinations": Scenario(
        _s3_combinations, 10, "S3 calls and kills in random order, held against a model after each of N rounds"
    ),
    "alerts": Scenario(alerts, 1, "the causes of 15 alerts are made and undone, N times; Prometheus tells"),
    "million": Scenario(million, 10, "a pool with N times 100,000 chunks: its memory, status and repair"),
}

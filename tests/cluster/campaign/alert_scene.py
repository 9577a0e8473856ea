"""A cluster that a real Prometheus watches, with the alerts that are handed out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster.campaign.run import Run
from tests.cluster.processes import Cluster, Process
from tests.metrics.prometheus import Prometheus

METRICS = ("--metrics", "127.0.0.1:0")
WAIT_S = 120.0

_RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "alerts.yml"
_WINDOW_S = 20


class Scene:
    """A pool and its workers, in which causes of alerts are made and undone.

    The rules are those that are handed out, but without their ``for``, and with windows of seconds in place of minutes
    and hours: nobody waits for an hour here.
    """

    def __init__(self, run: Run, cluster: Cluster, names: Sequence[str]) -> None:
        self.run = run
        self.cluster = cluster
        self.names = names
        self._rules = run.directory / "alerts.yml"
        rules = re.sub(r"\n +for: \w+", "", _RULES.read_text())
        self._rules.write_text(re.sub(r"\[\d+[mh]\]", f"[{_WINDOW_S}s]", rules))

    def watched(self) -> Prometheus:
        """A Prometheus for the processes that there are now: those that are started again have other ports."""
        directory = self.run.directory / f"prometheus-{len(list(self.run.directory.glob('prometheus-*')))}"
        directory.mkdir()
        processes = [self.cluster.pool_process, *self.cluster.workers.values()]
        return Prometheus(directory, {"taskworker": [_target(process) for process in processes]}, [self._rules])

    def start(self, *names: str) -> None:
        """Start workers, new or again."""
        for name in names:
            self.cluster.start_worker(name, *METRICS, "--no-functions")

    def fires(self, cause: str, prometheus: Prometheus, *expected: str) -> None:
        """Check that these alerts fire; others that do are noted."""
        wanted = set(expected)
        taken_s = self._until(lambda: wanted <= prometheus.firing())
        firing = prometheus.firing()
        missing = ", ".join(sorted(wanted - firing))
        told = f"not after {taken_s:.1f} s: {missing}" if missing else f"fires after {taken_s:.1f} s"
        self.run.verdicts.check(f"{cause}: {', '.join(sorted(wanted))}", told, holds=not missing)
        if firing - wanted:
            self.run.verdicts.note(f"also: {', '.join(sorted(firing - wanted))}")

    def resolves(self, cause: str, prometheus: Prometheus, *expected: str) -> None:
        """Check that these alerts end."""
        wanted = set(expected)
        taken_s = self._until(lambda: not wanted & prometheus.firing())
        left = wanted & prometheus.firing()
        self.run.verdicts.check(
            f"{cause}: {', '.join(sorted(wanted))}", f"resolves after {taken_s:.1f} s", holds=not left
        )

    def resolves_anew(self, cause: str, *expected: str) -> None:
        """Check that these alerts do not fire in a Prometheus that knows where all processes listen now."""
        with self.watched() as prometheus:
            self.await_all(prometheus)
            self.resolves(cause, prometheus, *expected)

    def await_all(self, prometheus: Prometheus) -> None:
        """Wait until all processes are scraped, and the rules have been evaluated several times since."""
        self._until(lambda: len(prometheus.query("up == 1")) == 1 + len(self.names))
        time.sleep(3.0)

    def repeat_until(self, what: str, condition: Callable[[], bool], act: Callable[[], None]) -> None:
        """Check that something comes true while ``act`` is done again and again."""
        began_s = time.monotonic()
        while not condition() and time.monotonic() - began_s < WAIT_S:
            act()
        taken_s = time.monotonic() - began_s
        self.run.verdicts.check(what, f"after {taken_s:.1f} s", holds=condition())

    def _until(self, condition: Callable[[], bool]) -> float:
        """Wait for a condition, but not for ever; how long it took."""
        began_s = time.monotonic()
        while not condition() and time.monotonic() - began_s < WAIT_S:
            time.sleep(0.2)
        return time.monotonic() - began_s


def _target(process: Process) -> str:
    return str(process.announced["metrics"]).split("/")[2]

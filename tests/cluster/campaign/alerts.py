"""Alerts fire in a real Prometheus when their cause is made, and resolve when it is undone."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

from storage.errors import StorageError
from tests.cluster.campaign.run import Run
from tests.cluster.processes import Cluster, Process
from tests.metrics.prometheus import Prometheus

_RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "alerts.yml"
_METRICS = ("--metrics", "127.0.0.1:0")
_NAMES = ("w0", "w1", "w2", "w3")
_WAIT_S = 120.0
_SMALL_DISK_BYTES = 48 << 20
_DAY_S = 86_400
_FILES = 20


def alerts(run: Run) -> None:
    """A worker is killed, a disk filled, a scrub overdue, and a certificate about to expire; and all is undone.

    The rules are those that are handed out, but without their ``for``: nobody waits for an hour here.
    """
    for program in ("prometheus", "mount"):
        run.verdicts.check(f"{program} is installed", str(shutil.which(program)), holds=bool(shutil.which(program)))
    rules = run.directory / "alerts.yml"
    rules.write_text(re.sub(r"\n +for: \w+", "", _RULES.read_text()))
    certificate = _Certificate(run.directory)
    certificate.write(valid_s=30 * _DAY_S)
    tls = ("--tls-cert", str(certificate.chain), "--tls-key", str(certificate.key))
    options = (*_METRICS, "--k", "1", "--n", "3", *tls)
    with (
        _small_disk(run.directory / "w3") as disk,
        Cluster(run.directory, workers=0, grace_s=3600.0, options=options) as cluster,
    ):
        for name in _NAMES:
            cluster.start_worker(name, *_METRICS, "--no-functions")
        cluster.await_status(lambda status: sum(worker.share > 0 for worker in status.workers) == len(_NAMES))
        for number in range(_FILES):
            cluster.client.push(os.urandom(100_000), filename=f"f{number}", user_id="ann")
        scene = _Scene(run, cluster, rules)
        for number in range(run.rounds):
            scene.quiet(number)
            scene.worker_killed()
            scene.scrub_overdue()
            scene.certificate_expiring(certificate)
            scene.disk_filled(disk)


class _Scene:
    """A pool, and the Prometheus that watches it."""

    def __init__(self, run: Run, cluster: Cluster, rules: Path) -> None:
        self._run = run
        self._cluster = cluster
        self._rules = rules
        self._started = 0

    def _watched(self) -> Prometheus:
        """A Prometheus for the processes that there are now: those that are started again have other ports."""
        self._started += 1
        directory = self._run.directory / f"prometheus-{self._started}"
        directory.mkdir()
        processes = [self._cluster.pool_process, *self._cluster.workers.values()]
        return Prometheus(directory, {"taskworker": [_target(process) for process in processes]}, [self._rules])

    def quiet(self, number: int) -> None:
        """No alert fires in a pool that is well."""
        with self._watched() as prometheus:
            self._await_all(prometheus)
            self._run.verdicts.errors(f"round {number + 1}: alerts in a pool that is well", sorted(prometheus.firing()))

    def worker_killed(self) -> None:
        """SIGKILL; then it is started again."""
        expected = {"TaskWorkerProcessDown", "TaskWorkerWorkerAway", "TaskWorkerRedundancyReduced"}
        with self._watched() as prometheus:
            self._cluster.kill("w1")
            self._fires("a worker was killed", prometheus, expected)
            self._start("w1")
            # It listens elsewhere now, so this Prometheus still finds nobody at its former address.
            self._resolves("it was started again", prometheus, expected - {"TaskWorkerProcessDown"})
        with self._watched() as prometheus:
            self._await_all(prometheus)
            self._resolves("it is scraped again", prometheus, expected)

    def scrub_overdue(self) -> None:
        """A worker was off for a month; its scrub begins a minute after its start."""
        expected = {"TaskWorkerScrubOverdue"}
        self._cluster.workers.pop("w2").stop()
        ended_ms = int((time.time() - 30 * _DAY_S) * 1000)
        scrub = self._run.directory / "w2" / "scrub.json"
        scrub.write_text(json.dumps({"ended_ms": ended_ms, "segment": -1}))
        self._start("w2")
        with self._watched() as prometheus:
            self._fires("a worker's last scrub was a month ago", prometheus, expected)
            self._resolves("it has scrubbed", prometheus, expected)

    def certificate_expiring(self, certificate: _Certificate) -> None:
        """The file of the users' certificate has one that ends in two hours; then a new one."""
        expected = {"TaskWorkerCertificateExpires"}
        with self._watched() as prometheus:
            certificate.write(valid_s=7_200)
            self._fires("a certificate is valid for two more hours", prometheus, expected)
            certificate.write(valid_s=30 * _DAY_S)
            self._resolves("it was replaced", prometheus, expected)

    def disk_filled(self, disk: Path) -> None:
        """Another file fills the disk of a worker; then it is removed."""
        expected = {"TaskWorkerWorkerTakesNoShards", "TaskWorkerSpaceLow"}
        ballast = disk / "ballast"
        with self._watched() as prometheus:
            with ballast.open("wb") as file:
                space = os.statvfs(disk)
                os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - (64 << 10))
            self._push_until("the disk is full", lambda: expected <= prometheus.firing())
            ballast.unlink()
            self._push_until("space was freed", lambda: not expected & prometheus.firing())

    def _push_until(self, what: str, condition: Callable[[], bool]) -> None:
        began_s = time.monotonic()
        while not condition() and time.monotonic() - began_s < _WAIT_S:
            with suppress(StorageError):  # what is refused is tried again
                self._cluster.client.push(os.urandom(300_000), filename="filling", user_id="ann")
            time.sleep(0.5)
        taken_s = time.monotonic() - began_s
        self._run.verdicts.check(f"{what}: alerts follow", f"after {taken_s:.1f} s", holds=condition())

    def _start(self, name: str) -> None:
        self._cluster.start_worker(name, *_METRICS, "--no-functions")

    def _fires(self, cause: str, prometheus: Prometheus, expected: set[str]) -> None:
        taken_s = self._until(lambda: expected <= prometheus.firing())
        firing = prometheus.firing()
        self._run.verdicts.check(
            f"{cause}: {', '.join(sorted(expected))}", f"fires after {taken_s:.1f} s", holds=expected <= firing
        )
        if firing - expected:
            self._run.verdicts.note(f"also: {', '.join(sorted(firing - expected))}")

    def _resolves(self, cause: str, prometheus: Prometheus, expected: set[str]) -> None:
        taken_s = self._until(lambda: not expected & prometheus.firing())
        left = expected & prometheus.firing()
        self._run.verdicts.check(
            f"{cause}: {', '.join(sorted(expected))}", f"resolves after {taken_s:.1f} s", holds=not left
        )

    def _await_all(self, prometheus: Prometheus) -> None:
        """Wait until all processes are scraped, and the rules have been evaluated several times since."""
        self._until(lambda: len(prometheus.query("up == 1")) == 1 + len(_NAMES))
        time.sleep(3.0)

    def _until(self, condition: Callable[[], bool]) -> float:
        """Wait for a condition, but not for ever; how long it took."""
        began_s = time.monotonic()
        while not condition() and time.monotonic() - began_s < _WAIT_S:
            time.sleep(0.2)
        return time.monotonic() - began_s


class _Certificate:
    """A certificate for the pool's users, of an authority of the operator's own."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.chain = directory / "users.crt"
        self.key = directory / "users.key"

    def write(self, valid_s: int) -> None:
        """Replace it by one that began a day ago, and ends in so many seconds."""
        now = datetime.datetime.now(datetime.UTC)
        made = self._authority.issue_cert(
            "localhost",
            not_before=now - datetime.timedelta(days=1),
            not_after=now + datetime.timedelta(seconds=valid_s),
        )
        self.key.touch(mode=0o600)
        self.key.write_bytes(made.private_key_pem.bytes())
        self.chain.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))


@contextmanager
def _small_disk(path: Path) -> Iterator[Path]:
    """A small file system in memory, which takes root to mount."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK_BYTES}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def _target(process: Process) -> str:
    return str(process.announced["metrics"]).split("/")[2]

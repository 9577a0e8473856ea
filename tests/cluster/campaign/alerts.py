"""Alerts fire in a real Prometheus when their cause is made, and resolve when it is undone."""

from __future__ import annotations

import datetime
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

from storage.errors import StorageError
from taskworker.client.users import UserClient
from tests.cluster.campaign.alert_scene import METRICS, Scene
from tests.cluster.campaign.run import Run
from tests.cluster.processes import Cluster

_NAMES = ("w0", "w1", "w2", "w3")
_SMALL_DISK_BYTES = 48 << 20
_DAY_S = 86_400
_FILES = 20


def alerts(run: Run) -> None:
    """Whatever has an alert is made, from a killed worker to a full disk; and all is undone.

    Two are left out, as only a fault of the program is a cause of them: ``TaskWorkerMetricsMissing``, and
    ``TaskWorkerWorkerCertificateExpires``, for a worker that is there and does not renew its certificate.
    """
    for program in ("prometheus", "mount"):
        run.verdicts.check(f"{program} is installed", str(shutil.which(program)), holds=bool(shutil.which(program)))
    certificate = _Certificate(run.directory)
    certificate.write(valid_s=30 * _DAY_S)
    tls = ("--tls-cert", str(certificate.chain), "--tls-key", str(certificate.key))
    options = (*METRICS, "--k", "1", "--n", "3", *tls)
    with (
        _small_disk(run.directory / "w3") as disk,
        Cluster(run.directory, workers=0, grace_s=3600.0, options=options) as cluster,
    ):
        scene = Scene(run, cluster, _NAMES)
        scene.start(*_NAMES)
        cluster.await_status(lambda status: sum(worker.share > 0 for worker in status.workers) == len(_NAMES))
        with UserClient(cluster.address) as users:
            users.add("ann")
        for number in range(_FILES):
            cluster.client.push(os.urandom(100_000), filename=f"f{number}", user_id="ann")
        for number in range(run.rounds):
            _quiet(scene, number)
            _workers_killed(scene)
            _scrub_overdue(scene)
            _certificate_expiring(scene, certificate)
            _descriptors_used_up(scene)
            _quota_exceeded(scene)
            _disk_filled(scene, disk)
            _data_lost(scene)


def _quiet(scene: Scene, number: int) -> None:
    """No alert fires in a pool that is well."""
    with scene.watched() as prometheus:
        scene.await_all(prometheus)
        scene.run.verdicts.errors(f"round {number + 1}: alerts in a pool that is well", sorted(prometheus.firing()))


def _workers_killed(scene: Scene) -> None:
    """SIGKILL of one worker after the other; then they are started again."""
    one_away = ("TaskWorkerProcessDown", "TaskWorkerWorkerAway", "TaskWorkerRedundancyReduced")
    with scene.watched() as prometheus:
        scene.cluster.kill("w1")
        scene.fires("a worker was killed", prometheus, *one_away)
        scene.cluster.kill("w2")
        scene.fires("a second one", prometheus, "TaskWorkerFilesAtRisk")
        scene.cluster.kill("w3")
        scene.fires("a third one", prometheus, "TaskWorkerFilesUnreadable", "TaskWorkerNotReady")
        scene.start("w1", "w2", "w3")
        # They listen elsewhere now, so this Prometheus still finds nobody at their former addresses.
        scene.resolves("they were started again", prometheus, *one_away[1:], "TaskWorkerFilesUnreadable")
    further = ("TaskWorkerFilesAtRisk", "TaskWorkerFilesUnreadable", "TaskWorkerNotReady")
    scene.resolves_anew("they are scraped again", *one_away, *further)


def _scrub_overdue(scene: Scene) -> None:
    """A worker was off for a month; its scrub begins a minute after its start."""
    scene.cluster.workers.pop("w2").stop()
    ended_ms = int((time.time() - 30 * _DAY_S) * 1000)
    scrub = scene.run.directory / "w2" / "scrub.json"
    scrub.write_text(json.dumps({"ended_ms": ended_ms, "segment": -1}))
    scene.start("w2")
    with scene.watched() as prometheus:
        scene.fires("a worker's last scrub was a month ago", prometheus, "TaskWorkerScrubOverdue")
        scene.resolves("it has scrubbed", prometheus, "TaskWorkerScrubOverdue")


def _certificate_expiring(scene: Scene, certificate: _Certificate) -> None:
    """The file of the users' certificate has one that ends in two hours; then a new one."""
    with scene.watched() as prometheus:
        certificate.write(valid_s=7_200)
        scene.fires("a certificate is valid for two more hours", prometheus, "TaskWorkerCertificateExpires")
        certificate.write(valid_s=30 * _DAY_S)
        scene.resolves("it was replaced", prometheus, "TaskWorkerCertificateExpires")


def _descriptors_used_up(scene: Scene) -> None:
    """The limit of a worker's descriptors is lowered to a tenth more than it uses; then raised again."""
    process = scene.cluster.workers["w1"]
    former = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    with scene.watched() as prometheus:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + used // 10 + 1, former[1]))
        scene.fires("a worker may open few more descriptors", prometheus, "TaskWorkerDescriptorsLow")
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, former)
        scene.resolves("its limit was raised", prometheus, "TaskWorkerDescriptorsLow")


def _quota_exceeded(scene: Scene) -> None:
    """A user who may store nothing tries again and again; then gives up."""
    with UserClient(scene.cluster.address) as users:
        users.set_quota("ann", files=1)

    def refused() -> None:
        with suppress(StorageError):
            scene.cluster.client.push(b"too much", filename="more", user_id="ann")
        time.sleep(0.1)

    with scene.watched() as prometheus:
        scene.await_all(prometheus)
        expected = "TaskWorkerRefusesCalls"
        scene.repeat_until(f"a quota is full: {expected}", lambda: expected in prometheus.firing(), refused)
        scene.resolves("the user tries no more", prometheus, expected)
    with UserClient(scene.cluster.address) as users:
        users.set_quota("ann", files="default")


def _data_lost(scene: Scene) -> None:
    """The disks of all workers lose what was written last, so a file cannot be repaired; then it is deleted."""
    segments = [path for name in _NAMES for path in (scene.run.directory / name).rglob("*.seg")]
    former = {path: path.stat().st_size for path in segments}
    doomed = scene.cluster.client.push(os.urandom(3_000_000), filename="doomed", user_id="ann")
    for name in _NAMES:
        for path in (scene.run.directory / name).rglob("*.seg"):
            _overwrite(path, former.get(path, 0))

    def read() -> None:
        with suppress(StorageError):
            scene.cluster.client.get(doomed.file_id, user_id="ann")
        time.sleep(0.5)

    expected = {"TaskWorkerFaults", "TaskWorkerDamage"}
    with scene.watched() as prometheus:
        scene.await_all(prometheus)
        title = f"all shards of a file are damaged: {', '.join(sorted(expected))}"
        scene.repeat_until(title, lambda: expected <= prometheus.firing(), read)
        scene.cluster.kill("w1")  # which has it examine all objects once it is back
        scene.start("w1")
        scene.fires("its shards cannot be rebuilt", prometheus, "TaskWorkerWorkFails")
        scene.cluster.client.delete(doomed.file_id, user_id="ann")
        scene.resolves("the file was deleted", prometheus, "TaskWorkerWorkFails", *expected)


def _overwrite(path: Path, first: int) -> None:
    """Replace what a segment has from a byte on."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(first)
        file.write(os.urandom(max(0, size - first)))


def _disk_filled(scene: Scene, disk: Path) -> None:
    """Another file fills the disk of a worker; then it is removed."""
    expected = {"TaskWorkerWorkerTakesNoShards", "TaskWorkerSpaceLow"}
    with scene.watched() as prometheus:
        ballast = _fill(disk)
        scene.repeat_until(
            f"the disk is full: {', '.join(sorted(expected))}",
            lambda: expected <= prometheus.firing(),
            lambda: _push_something(scene),
        )
        ballast.unlink()
        scene.repeat_until(
            "space was freed: they resolve",
            lambda: not expected & prometheus.firing(),
            lambda: _push_something(scene),
        )


def _fill(disk: Path) -> Path:
    """Leave 64 KiB of a file system free; what takes the rest."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        space = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - (64 << 10))
    return ballast


def _push_something(scene: Scene) -> None:
    with suppress(StorageError):  # what is refused is tried again
        scene.cluster.client.push(os.urandom(300_000), filename="filling", user_id="ann")
    time.sleep(0.5)


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
